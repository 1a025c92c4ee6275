/**
 * The Unix socket of the daemon.
 *
 * Invariant: whoever may connect is decided by the file's mode before the first client can be accepted, and a socket
 * that somebody still serves is never taken away.
 */
import { lstatSync } from "node:fs";
import { chmod, unlink } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { isMainThread } from "node:worker_threads";
import { XenError } from "../domain.ts";
import { SocketTransport } from "./socket-transport.ts";
import type { XenStoreTransport } from "./transport.ts";

/** sizeof(sun_path) less the NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

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
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
      const message = `${path}: a socket's path has at most ${MAX_SOCKET_PATH_BYTES} bytes`;
      throw new XenError("ENAMETOOLONG", message);
    }
    await removeStale(path);
    const clients = new Set<Disposable>();
    const server = createServer((socket) => {
      const client = options.accept(new SocketTransport(socket));
      clients.add(client);
      socket.on("close", () => clients.delete(client));
    });
    server.maxConnections = options.clients;
    await listen(server, path, options.mode);
    const opened = new XenStoreSocket(server, clients);
    try {
      await chmod(path, options.mode);
    } catch (error) {
      await opened[Symbol.asyncDispose]();
      throw error;
    }
    return opened;
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

async function listen(server: Server, path: string, mode: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  // Later errors are of clients that could not be accepted, for want of descriptors: they see it themselves.
  server.on("error", (error: NodeJS.ErrnoException) => {
    reject(new XenError(error.code ?? "EIO", `${path}: ${error.message}`, { cause: error }));
  });
  // The file appears within listen: with the mask it never has more rights than it is to have. A worker has no mask,
  // but even there a new socket is its owner's to connect to until chmod, under any usual mask.
  const mask = isMainThread ? process.umask(0o777 & ~mode) : undefined;
  try {
    server.listen(path, resolve);
  } finally {
    if (mask !== undefined) process.umask(mask);
  }
  await promise;
}

/** Removes a socket that nobody serves any more; rejects where somebody does, or where it is no socket. */
async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket() || (await isServed(path))) {
    const what = found.isSocket() ? "another server listens there" : "there is a file of that name";
    throw new XenError("EADDRINUSE", `${path}: ${what}`);
  }
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
  });
}

function isServed(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket: Socket = connect(path);
  socket.once("connect", () => {
    socket.destroy();
    resolve(true);
  });
  socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  return promise;
}
