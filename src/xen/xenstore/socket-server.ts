/** The Unix socket of the daemon: its clients, from the first to the last. */
import { createServer, type Server } from "node:net";
import { listenOnUnixSocket, UnixSocketError } from "../../io/unix-socket.ts";
import { XenError } from "../domain.ts";
import { socketTransport } from "./descriptor-transport.ts";
import type { XenStoreTransport } from "./transport.ts";

export interface XenStoreSocketOptions {
  /** Of the file. */
  readonly mode: number;
  /** At one time; more are turned away. */
  readonly clients: number;
  /** Takes over a client. */
  readonly accept: (transport: XenStoreTransport) => Disposable;
}

export class XenStoreSocket implements AsyncDisposable {
  readonly #server: Server;
  readonly #clients: Set<Disposable>;
  #closed: Promise<void> | undefined;

  private constructor(server: Server, clients: Set<Disposable>) {
    this.#server = server;
    this.#clients = clients;
  }

  static async open(path: string, options: XenStoreSocketOptions): Promise<XenStoreSocket> {
    const clients = new Set<Disposable>();
    const server = createServer((socket) => {
      const client = options.accept(socketTransport(socket));
      clients.add(client);
      socket.on("close", () => clients.delete(client));
    });
    server.maxConnections = options.clients;
    try {
      await listenOnUnixSocket(server, path, options.mode);
    } catch (error) {
      if (!(error instanceof UnixSocketError)) throw error;
      throw new XenError(error.code, error.message, { cause: error });
    }
    return new XenStoreSocket(server, clients);
  }

  /** Idempotent. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    for (const client of this.#clients) client[Symbol.dispose]();
    await promise;
  }
}
