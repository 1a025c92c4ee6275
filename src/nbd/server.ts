/**
 * An NBD server: exports block stores to any NBD client (proto.md, fixed newstyle; nbdkit(1) for manners).
 *
 * Invariant: one client's mistakes, slowness or death cost the others nothing: handshakes end in time, connections
 * are counted, those that ask nothing give way when there are too many, and each holds a bounded share of memory.
 */
import { createServer, type Server, type Socket } from "node:net";
import type { Reactor } from "../io/reactor.ts";
import { listenOnUnixSocket } from "../io/unix-socket.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  type RequestOwner,
} from "../store/block-store.ts";
import { emulate } from "../store/emulate.ts";
import { Errno, type ErrnoName, errnoName, StoreError } from "../store/errors.ts";
import { type Clock, systemClock } from "../util/clock.ts";
import { BufferPool } from "./buffer-pool.ts";
import { ExportTable, type NbdExport } from "./export.ts";
import { HandshakeStream } from "./handshake-stream.ts";
import {
  type ConnectionEnvironment,
  type ServedStore,
  ServerConnection,
} from "./server-connection.ts";
import { serverHandshake } from "./server-handshake.ts";
import { openTransport, type TransportKind } from "./transports.ts";
import { formatNbdUri, type NbdAddress } from "./uri.ts";

/** Each may hold 64 MiB of payload, though few do: nbdcopy opens four, and a host has not thirty clients of one disk. */
const DEFAULT_MAX_CONNECTIONS = 128;
/** Milliseconds without a request after which a client gives way to another, where there is no room. */
const IDLE_BEFORE_GIVING_WAY = 60_000;
/** Milliseconds of silence until TCP asks whether the client's machine is still there. */
const KEEP_ALIVE_DELAY = 60_000;
/** A client on the far side of the world needs a second. */
const DEFAULT_HANDSHAKE_TIMEOUT = 10_000;
/** Requests in flight at close: a disk answers sooner, or is broken. */
const DEFAULT_CLOSE_TIMEOUT = 10_000;

export interface NbdServerOptions {
  readonly reactor: Reactor;
  /** One more takes the place of the client that has asked nothing for longest, but at least for a minute; where there
   * is none, it is disconnected at once. */
  readonly maxConnections?: number;
  /** Milliseconds until a client must have chosen its export. */
  readonly handshakeTimeout?: number;
  /** Milliseconds that `close` gives to requests in flight. */
  readonly closeTimeout?: number;
  /** How sockets are read and written; "auto" takes the fastest that this machine has. */
  readonly transport?: TransportKind;
  readonly clock?: Clock;
}

export type NbdListenOptions =
  /** A Unix socket, made with `mode` (0600 unless told). */
  | { readonly path: string; readonly mode?: number }
  /** TCP on `host` (127.0.0.1 unless told); port 0, the default, is any free one. */
  | { readonly host?: string; readonly port?: number }
  /** A listening socket that someone opened for us (LISTEN_FDS). */
  | { readonly fd: number };

export interface NbdServerCounters {
  readonly connections: number;
  /** Since the server began. */
  readonly accepted: number;
  /** Of them, disconnected for being too many. */
  readonly refused: number;
  /** Of them, disconnected for another, having asked nothing for long. */
  readonly gaveWay: number;
  /** Of them, disconnected during the handshake: too slow, or not speaking the protocol. */
  readonly failedHandshakes: number;
}

export class NbdServer implements AsyncDisposable {
  readonly #exports = new ExportTable();
  readonly #reactor: Reactor;
  readonly #maxConnections: number;
  readonly #handshakeTimeout: number;
  readonly #closeTimeout: number;
  readonly #transport: TransportKind;
  readonly #clock: Clock;
  readonly #environment: ConnectionEnvironment;
  readonly #stores = new Map<BlockStore, ServedStore>();
  readonly #listeners: Server[] = [];
  readonly #handshakes = new Set<Socket>();
  readonly #connections = new Set<ServerConnection>();
  /** Of the connections, those that were told to end for another. */
  readonly #leaving = new Set<ServerConnection>();
  readonly #addresses: NbdAddress[] = [];
  /** Those who wait until connections have ended. */
  readonly #waiting = new Set<{
    of: (connection: ServerConnection) => boolean;
    done: () => void;
  }>();
  #closing: Promise<void> | undefined;
  #accepted = 0;
  #refused = 0;
  #gaveWay = 0;
  #failedHandshakes = 0;

  /** The stores stay the caller's, and belong to the reactor's thread. Throws StoreError("EINVAL") for exports that
   * share a name. More may be added, and some removed, while clients come and go. */
  constructor(exports: readonly NbdExport[], options: NbdServerOptions) {
    this.#reactor = options.reactor;
    this.#maxConnections = options.maxConnections ?? DEFAULT_MAX_CONNECTIONS;
    this.#handshakeTimeout = options.handshakeTimeout ?? DEFAULT_HANDSHAKE_TIMEOUT;
    this.#closeTimeout = options.closeTimeout ?? DEFAULT_CLOSE_TIMEOUT;
    this.#transport = options.transport ?? "auto";
    this.#clock = options.clock ?? systemClock;
    this.#environment = {
      reactor: this.#reactor,
      clock: this.#clock,
      ended: (connection) => this.#ended(connection),
    };
    for (const entry of exports) this.add(entry);
  }

  /** Offers one more export from now on. Throws StoreError("EINVAL") where its name is taken or none. */
  add(entry: NbdExport): void {
    this.#exports.add(entry);
    const { store } = entry;
    if (this.#stores.has(store)) return;
    const whole = emulate(store, this.#reactor);
    this.#stores.set(store, { store: whole, pool: new BufferPool(whole) });
  }

  /** Clients of an export that was added. */
  clients(entry: NbdExport): number {
    return [...this.#connections].filter((connection) => connection.uses(entry)).length;
  }

  /** Offers an export no more; resolves when its last client has left. With `force` its clients are cut off at once,
   * whatever they have in flight, also those that another call waits for. The store is neither flushed nor closed. */
  async remove(entry: NbdExport, options: { readonly force?: boolean } = {}): Promise<void> {
    this.#exports.remove(entry);
    const ofIt = (connection: ServerConnection) => connection.uses(entry);
    if (options.force === true) {
      for (const connection of this.#connections) if (ofIt(connection)) connection.destroy();
    } else await this.#gone(ofIt);
    const others = [...this.#exports].some(({ store }) => store === entry.store);
    if (others) return;
    this.#stores.get(entry.store)?.pool[Symbol.dispose]();
    this.#stores.delete(entry.store);
  }

  get counters(): NbdServerCounters {
    return {
      connections: this.#connections.size + this.#handshakes.size,
      accepted: this.#accepted,
      refused: this.#refused,
      gaveWay: this.#gaveWay,
      failedHandshakes: this.#failedHandshakes,
    };
  }

  /** Accepts clients there from now on. Rejects with StoreError (EADDRINUSE, EACCES, ENOENT where there is no such folder,
   * ...). May be called again for another address. */
  async listen(options: NbdListenOptions): Promise<{ uri: string; address: NbdAddress }> {
    if (this.#closing !== undefined) throw new StoreError("ESHUTDOWN", "the NBD server is closed");
    const listener = createServer((socket) => {
      void this.#serve(socket);
    });
    await listenAt(listener, options);
    this.#listeners.push(listener);
    const bound = listener.address();
    const address: NbdAddress =
      bound === null || typeof bound === "string"
        ? { path: "path" in options ? options.path : (bound ?? "") }
        : { host: bound.address, port: bound.port };
    this.#addresses.push(address);
    return { uri: formatNbdUri({ address, exportName: "" }), address };
  }

  /** Of an export at the first address that the server listens on. */
  uri(exportName: string = ""): string {
    const address = this.#addresses[0];
    if (address === undefined) throw new StoreError("EINVAL", "the NBD server does not listen yet");
    return formatNbdUri({ address, exportName });
  }

  async #serve(socket: Socket): Promise<void> {
    this.#accepted++;
    // Whoever reads or writes learns of an error there; without a listener it would end the process.
    socket.on("error", () => {});
    if (this.#closing !== undefined || !this.#hasRoom()) {
      this.#refused++;
      socket.destroy();
      return;
    }
    this.#handshakes.add(socket);
    const deadline = this.#clock.after(this.#handshakeTimeout, () => socket.destroy());
    try {
      socket.setNoDelay(true);
      socket.setKeepAlive(true, KEEP_ALIVE_DELAY);
      const stream = new HandshakeStream(socket);
      const negotiated = await serverHandshake(stream, this.#exports);
      this.#handshakes.delete(socket);
      // An export may have been taken back meanwhile.
      const open = this.#closing === undefined && negotiated !== undefined;
      if (!open || !this.#exports.has(negotiated.export)) {
        socket.destroySoon();
        return;
      }
      const transport = openTransport(this.#transport, socket, stream.release(), this.#reactor);
      const served = this.#stores.get(negotiated.export.store)!;
      const connection = new ServerConnection(transport, negotiated, served, this.#environment);
      this.#connections.add(connection);
      this.#reactor.settle();
    } catch {
      this.#failedHandshakes++;
      this.#handshakes.delete(socket);
      socket.destroy();
    } finally {
      deadline[Symbol.dispose]();
    }
  }

  /** Room for one more, made where somebody can go. */
  #hasRoom(): boolean {
    const taken = this.#connections.size - this.#leaving.size + this.#handshakes.size;
    if (taken < this.#maxConnections) return true;
    const idlest = this.#idlest();
    if (idlest === undefined) return false;
    this.#gaveWay++;
    this.#leaving.add(idlest);
    idlest.destroy();
    return true;
  }

  /** The connection that has been idle for longest, and for long enough to go. */
  #idlest(): ServerConnection | undefined {
    let found: ServerConnection | undefined;
    let since = this.#clock.now() - IDLE_BEFORE_GIVING_WAY;
    for (const connection of this.#connections) {
      const idleSince = connection.idleSince;
      if (idleSince === undefined || idleSince > since || this.#leaving.has(connection)) continue;
      since = idleSince;
      found = connection;
    }
    return found;
  }

  #ended(connection: ServerConnection): void {
    this.#connections.delete(connection);
    this.#leaving.delete(connection);
    // Many exports that nobody uses any more would hold much between them.
    const { pool } = connection;
    if (![...this.#connections].some((other) => other.pool === pool)) pool.trim();
    for (const waiting of this.#waiting) {
      if ([...this.#connections].some(waiting.of)) continue;
      this.#waiting.delete(waiting);
      waiting.done();
    }
  }

  /** Resolves when no connection of those is left. */
  async #gone(of: (connection: ServerConnection) => boolean): Promise<void> {
    if (![...this.#connections].some(of)) return;
    await new Promise<void>((done) => this.#waiting.add({ of, done }));
  }

  /** Accepts no more, lets requests in flight finish (for `closeTimeout` at most), disconnects everyone, flushes
   * every store that can be written. Rejects with StoreError where a flush failed. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const closed = this.#listeners.map(
      (listener) => new Promise<void>((resolve) => listener.close(() => resolve())),
    );
    for (const socket of this.#handshakes) socket.destroy();
    if (this.#connections.size > 0) {
      const connections = [...this.#connections];
      const idle = this.#gone(() => true);
      for (const connection of connections) connection.shutdown();
      let timer: Disposable | undefined;
      const late = new Promise<void>((resolve) => {
        timer = this.#clock.after(this.#closeTimeout, resolve);
      });
      await Promise.race([idle, late]);
      timer?.[Symbol.dispose]();
      // A store that still works on a request keeps its memory; the connection ends without us.
      for (const connection of this.#connections) connection.destroy();
    }
    await Promise.all(closed);
    const served = [...this.#stores.values()];
    const flushes = served
      .filter(({ store }) => !store.info.readOnly)
      .map(({ store }) => flushStore(store, this.#reactor));
    await Promise.all(flushes);
    for (const { pool } of served) pool[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function listenAt(listener: Server, options: NbdListenOptions): Promise<void> {
  if ("path" in options) {
    try {
      await listenOnUnixSocket(listener, options.path, options.mode ?? 0o600);
    } catch (cause) {
      const code = (cause as Error & { code?: string }).code ?? "";
      throw new StoreError(codeOf(code), (cause as Error).message, { cause });
    }
    return;
  }
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const where =
    "fd" in options
      ? { fd: options.fd }
      : { host: options.host ?? "127.0.0.1", port: options.port ?? 0 };
  // Later errors are of clients that could not be accepted, for want of descriptors: they see it themselves.
  listener.on("error", (cause: NodeJS.ErrnoException) => {
    const code = cause.code ?? "";
    const place = "fd" in where ? `descriptor ${where.fd}` : `${where.host} port ${where.port}`;
    reject(
      new StoreError(codeOf(code), `${place}: ${listenErrors[code] ?? cause.message}`, { cause }),
    );
  });
  listener.listen(where, resolve);
  await promise;
}

/** What people can do about an address. */
const listenErrors: Readonly<Record<string, string>> = {
  EACCES: "only root may listen there; choose a port above 1023",
  EADDRINUSE: "another program listens there; end it, or choose another port",
  EADDRNOTAVAIL: "this machine has no such address",
  EINVAL: "is not a socket that listens",
  ENOTFOUND: "there is no host of that name",
};

/** The nearest of those that a store can have. */
function codeOf(code: string): ErrnoName {
  if (Object.hasOwn(Errno, code)) return code as ErrnoName;
  if (code === "ENOTDIR" || code === "ENOTFOUND") return "ENOENT";
  return code === "ENAMETOOLONG" ? "EINVAL" : "EIO";
}

function flushStore(store: BlockStore, reactor: Reactor): Promise<void> {
  return new Promise((resolve, reject) => {
    const owner: RequestOwner = {
      completed({ status }) {
        if (status === 0) resolve();
        else reject(new StoreError(errnoName(status), "the flush at the server's close failed"));
      },
    };
    const request = new BlockRequest(owner);
    request.operation = Operation.flush;
    store.submit(request);
    reactor.settle();
  });
}
