/**
 * The xenstore daemon: the state, and the clients connected to it, in this process, over ports and Unix sockets.
 *
 * Invariant: a client acts as exactly one domain, fixed by the way it came in and never by what it says.
 */
import type { MessagePort } from "node:worker_threads";
import { type Clock, systemClock } from "../../util/clock.ts";
import { Connection } from "./connection.ts";
import { defaultLimits, type XenStoreLimits } from "./limits.ts";
import { localTransportPair } from "./local-transport.ts";
import { transportOver } from "./message-port-transport.ts";
import { RingService } from "./ring-service.ts";
import type { XenStoreRing } from "./ring-transport.ts";
import { XenStoreSocket } from "./socket-server.ts";
import { XenStoreState } from "./state.ts";
import type { XenStoreTransport } from "./transport.ts";

export interface XenStoreDaemonOptions {
  /** Limits that differ from those of the C daemon. */
  readonly limits?: Partial<XenStoreLimits>;
  /** Whether permissions may name a domain; without it, any domid that can be one. Domain 0 and domains that were
   * introduced always may. */
  readonly domainExists?: (domid: number) => boolean;
  /** Maps the xenstore ring of a domain and binds its port, as XS_INTRODUCE asks; undefined where it has none. */
  readonly openRing?: (domid: number, port: number) => (XenStoreRing & Disposable) | undefined;
  readonly clock?: Clock;
  /** Takes lines about requests, while a client has switched them on (CONTROL log), and what one prints. */
  readonly onTrace?: (line: string) => void;
  /** Hears of clients that were disconnected for what they did. */
  readonly onClientLost?: (domid: number, reason: Error) => void;
}

export class XenStoreDaemon implements AsyncDisposable {
  readonly #state: XenStoreState;
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
    const connection = new Connection(this.#state, domid, transport);
    this.#connections.add(connection);
    connection.onend = (reason) => {
      this.#connections.delete(connection);
      if (reason !== undefined) this.#options.onClientLost?.(domid, reason);
    };
    return { [Symbol.dispose]: () => connection.close() };
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
  }

  /** A domain runs no more, but is still there: watches of @releaseDomain hear of it. */
  shutdown(domid: number): void {
    this.#state.shutdown(domid);
  }

  /** A domain that was shut down runs on. */
  resume(domid: number): void {
    this.#state.domains.get(domid).shutdown = false;
  }

  /** A domain died. Its clients and sockets are closed, its watches, transactions and nodes go with all below them, and so
   * does what the permissions of other nodes gave it; then watches of @releaseDomain hear of it. */
  release(domid: number): void {
    this.#state.release(domid);
  }

  #openRing(domid: number, port: number): void {
    if (port === 0 || this.#disposed) return;
    const before = this.#rings.get(domid);
    before?.reconnect();
    if (before !== undefined) return;
    const ring = this.#options.openRing?.(domid, port);
    if (ring === undefined) return;
    this.#rings.set(domid, new RingService(ring, (transport) => this.accept(transport, domid)));
  }

  /** Nobody can act as a domain any more that has died. */
  #closeWaysIn(domid: number): void {
    this.#rings.get(domid)?.[Symbol.dispose]();
    this.#rings.delete(domid);
    for (const [socket, served] of this.#sockets) {
      if (served === domid) void socket[Symbol.asyncDispose]();
    }
  }

  isIntroduced(domid: number): boolean {
    return this.#state.domains.isIntroduced(domid);
  }

  /** Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    for (const ring of this.#rings.values()) ring[Symbol.dispose]();
    this.#rings.clear();
    for (const connection of this.#connections) connection.close();
    const sockets = [...this.#sockets.keys()];
    this.#sockets.clear();
    await Promise.all(sockets.map((socket) => socket[Symbol.asyncDispose]()));
  }
}
