/**
 * The xenstore daemon: the state, and the clients connected to it, in this process, over ports and Unix sockets.
 *
 * Invariant: a client acts as exactly one domain, fixed by the way it came in and never by what it says.
 */
import type { MessagePort } from "node:worker_threads";
import { type Clock, systemClock } from "../../util/clock.ts";
import { Connection } from "./connection.ts";
import type { KnownDomain } from "./domains.ts";
import { FlushTurn } from "./flush-turn.ts";
import { Journal } from "./journal.ts";
import { defaultLimits, type XenStoreLimits } from "./limits.ts";
import { type LoadedRing, type LoadedWatch, loadState } from "./load-state.ts";
import { localTransportPair } from "./local-transport.ts";
import { transportOver } from "./message-port-transport.ts";
import { RingService } from "./ring-service.ts";
import type { RingTransport, XenStoreRing } from "./ring-transport.ts";
import { XenStoreSocket } from "./socket-server.ts";
import { XenStoreState } from "./state.ts";
import { realStatePath, StateFile } from "./state-file.ts";
import type { XenStoreTransport } from "./transport.ts";

/** How a xenstore outlives its daemon. */
export interface XenStoreStateOptions {
  /** Made with mode 0600 where it is not there; no two daemons have the same. */
  readonly file: string;
  /** "turn": a power cut loses nothing that a client was told, and every turn waits for the disk. Without it, what was
   * told in the last tenth of a second or so may be lost by a power cut; by a kill, nothing ever is. */
  readonly sync?: "turn";
  /** Whether a domain that the state has is still there; without it, what `domainExists` says, or yes. */
  readonly isAlive?: (domid: number) => boolean;
  /** Takes lines for people: what was left out of a damaged end, that a disk is full. */
  readonly onNote?: (line: string) => void;
}

export interface XenStoreDaemonOptions {
  /** Limits that differ from those of the C daemon. */
  readonly limits?: Partial<XenStoreLimits>;
  /** Whether permissions may name a domain; without it, any domid that can be one. Domain 0 and domains that were
   * introduced always may. */
  readonly domainExists?: (domid: number) => boolean;
  /** Maps the xenstore ring of a domain and binds its port, as XS_INTRODUCE asks; undefined where it has none. */
  readonly openRing?: (domid: number, port: number) => (XenStoreRing & Disposable) | undefined;
  /** Where the xenstore outlives this daemon, and how. */
  readonly state?: XenStoreStateOptions;
  readonly clock?: Clock;
  /** Takes lines about requests, while a client has switched them on (CONTROL log), and what one prints. */
  readonly onTrace?: (line: string) => void;
  /** Hears of clients that were disconnected for what they did. */
  readonly onClientLost?: (domid: number, reason: Error) => void;
}

export class XenStoreDaemon implements AsyncDisposable {
  readonly #state: XenStoreState;
  readonly #turn = new FlushTurn();
  readonly #options: XenStoreDaemonOptions;
  readonly #connections = new Set<Connection>();
  readonly #sockets = new Map<XenStoreSocket, number>();
  readonly #rings = new Map<number, RingService>();
  #disposed = false;

  constructor(options: XenStoreDaemonOptions = {}) {
    this.#options = options;
    const limits = { ...defaultLimits, ...options.limits };
    this.#state = new XenStoreState(
      limits,
      options.clock ?? systemClock,
      options.domainExists ?? (() => true),
      {
        introduced: (domid, port) => this.#openRing(domid, port),
        released: (domid) => this.#closeWaysIn(domid),
      },
    );
    this.#state.trace.sink = options.onTrace;
    if (options.state !== undefined) this.#restore(options.state);
  }

  /** Without a turn of the event loop in between, so that nobody hears of anything before the journal has begun. */
  #restore(options: XenStoreStateOptions): void {
    const { onNote = () => {} } = options;
    const path = realStatePath(options.file);
    using file = StateFile.open(path);
    const rings = file === undefined ? new Map<number, LoadedRing>() : loadState(file, this.#state);
    const cut = file === undefined ? 0 : file.fileBytes - file.size;
    if (cut > 0)
      onNote(`${path}: ${cut} bytes at the end were not written to their end, and are left out`);
    const journal = new Journal(this.#state, path, { syncTurns: options.sync === "turn", onNote });
    this.#state.journal = journal;
    try {
      const begin = this.#restoreRings(rings, options);
      journal.begin();
      begin();
    } catch (error) {
      void this.#end();
      throw error;
    }
  }

  /** Everything is as it was, but nothing moves until what is returned is called. */
  #restoreRings(
    rings: ReadonlyMap<number, LoadedRing>,
    { isAlive, onNote = () => {} }: XenStoreStateOptions,
  ): () => void {
    const { domainExists = () => true, openRing } = this.#options;
    const domains = [...this.#state.domains].filter(({ introduced }) => introduced);
    const isThere = ({ domid }: KnownDomain) => domid === 0 || (isAlive ?? domainExists)(domid);
    const services: RingService[] = [];
    const restored: { watch: LoadedWatch; connection: Connection }[] = [];
    const unfinished: (() => void)[] = [];
    for (const domain of domains.filter(isThere)) {
      const { domid, port } = domain;
      const ring = port === 0 ? undefined : openRing?.(domid, port);
      if (ring === undefined) {
        if (port !== 0)
          onNote(`the ring of domain ${domid} cannot be opened: its watches are lost`);
        continue;
      }
      const service = this.#ringService(domain, ring);
      const loaded = rings.get(domid);
      if (loaded === undefined) {
        services.push(service);
        continue;
      }
      const transport = service.connect();
      const connection = [...this.#connections].at(-1)!;
      for (const watch of loaded.watches.values()) restored.push({ watch, connection });
      unfinished.push(() => {
        transport.place(loaded);
        connection.goOn(loaded);
        services.push(service);
      });
    }
    restored.sort((a, b) => a.watch.number - b.watch.number);
    for (const { watch, connection } of restored) connection.restoreWatch(watch);
    for (const finish of unfinished) finish();
    return () => {
      for (const service of services) service.goOn();
      for (const domain of domains) if (!isThere(domain)) this.#state.release(domain.domid);
    };
  }

  /** Clients connected now. */
  get clients(): number {
    return this.#connections.size;
  }

  /** A connection of domain `domid` in this thread; the end returned is for its client. */
  connect(domid: number): XenStoreTransport {
    const [ours, theirs] = localTransportPair();
    this.accept(ours, domid);
    return theirs;
  }

  /** Serves domain `domid` over `end`, which is ours from then on. Disposal disconnects. */
  accept(end: XenStoreTransport | MessagePort, domid: number): Disposable {
    const transport = transportOver(end);
    if (this.#disposed) {
      transport.close();
      return { [Symbol.dispose]: () => {} };
    }
    const connection = this.#connect(transport, domid);
    return { [Symbol.dispose]: () => connection.close() };
  }

  #connect(transport: XenStoreTransport, domid: number, ring?: RingTransport): Connection {
    const connection = new Connection(this.#state, domid, transport, this.#turn, ring);
    this.#connections.add(connection);
    connection.onend = (reason) => {
      this.#connections.delete(connection);
      if (reason !== undefined) this.#options.onClientLost?.(domid, reason);
    };
    return connection;
  }

  /** Listens on a Unix socket, whose clients act as `domid` (0) and need the file's `mode` (0o600); a socket that a
   * dead process left there is replaced. Rejects with XenError("EADDRINUSE", "ENAMETOOLONG", "EACCES" ...). Disposal
   * disconnects the clients and removes the file. */
  async listen(
    path: string,
    options: { readonly domid?: number; readonly mode?: number } = {},
  ): Promise<AsyncDisposable> {
    const { domid = 0, mode = 0o600 } = options;
    const socket = await XenStoreSocket.open(path, {
      mode,
      clients: this.#state.limits.clients,
      accept: (transport) => this.accept(transport, domid),
    });
    if (this.#disposed) await socket[Symbol.asyncDispose]();
    else this.#sockets.set(socket, domid);
    return {
      [Symbol.asyncDispose]: async () => {
        this.#sockets.delete(socket);
        await socket[Symbol.asyncDispose]();
      },
    };
  }

  /** A domain came to be: watches of @introduceDomain hear of it. With the port of its xenstore ring, the ring is served
   * from here on, from its beginning where it was before. */
  introduce(domid: number, port = 0): void {
    this.#state.introduce(domid, port);
    this.#state.journal?.commit();
  }

  /** A domain runs no more, but is still there: watches of @releaseDomain hear of it. */
  shutdown(domid: number): void {
    this.#state.shutdown(domid);
    this.#state.journal?.commit();
  }

  /** A domain that was shut down runs on. */
  resume(domid: number): void {
    this.#state.resume(domid);
    this.#state.journal?.commit();
  }

  /** A domain died. Its clients and sockets are closed, its watches, transactions and nodes go with all below them, and so
   * does what the permissions of other nodes gave it; then watches of @releaseDomain hear of it. */
  release(domid: number): void {
    this.#state.release(domid);
    this.#state.journal?.commit();
  }

  #openRing(domid: number, port: number): void {
    if (port === 0 || this.#disposed) return;
    const before = this.#rings.get(domid);
    before?.reconnect();
    if (before !== undefined) return;
    const ring = this.#options.openRing?.(domid, port);
    if (ring === undefined) return;
    this.#ringService(this.#state.domains.get(domid), ring).serve();
  }

  #ringService({ domid, features }: KnownDomain, ring: XenStoreRing & Disposable): RingService {
    const service = new RingService(ring, features, (transport) => {
      this.#connect(transport, domid, transport);
    });
    this.#rings.set(domid, service);
    return service;
  }

  /** Nobody can act as a domain any more that has died. */
  #closeWaysIn(domid: number): void {
    this.#rings.get(domid)?.[Symbol.dispose]();
    this.#rings.delete(domid);
    for (const [socket, served] of this.#sockets) {
      if (served === domid) void socket[Symbol.asyncDispose]();
    }
  }

  /** Domains that were introduced, 0 among them. */
  get introduced(): readonly number[] {
    const known = [...this.#state.domains].filter(({ introduced }) => introduced);
    return known.map(({ domid }) => domid);
  }

  isIntroduced(domid: number): boolean {
    return this.#state.domains.isIntroduced(domid);
  }

  /** Everybody is disconnected; what is kept is kept as it is now, with the watches of rings. */
  #end(): Promise<void> | undefined {
    this.#disposed = true;
    const kept = this.#state.journal?.[Symbol.asyncDispose]();
    for (const ring of this.#rings.values()) ring[Symbol.dispose]();
    this.#rings.clear();
    for (const connection of this.#connections) connection.close();
    return kept;
  }

  /** Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    const kept = this.#end();
    const sockets = [...this.#sockets.keys()];
    this.#sockets.clear();
    await Promise.all([kept, ...sockets.map((socket) => socket[Symbol.asyncDispose]())]);
  }
}
