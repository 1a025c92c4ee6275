/** A transport over a stream socket, as the xenstore tools speak: either end of a Unix socket. */
import { connect, type Socket } from "node:net";
import { XenError } from "../domain.ts";
import type { XenStoreTransport } from "./transport.ts";

export class SocketTransport implements XenStoreTransport {
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  ondrain: (() => void) | undefined;
  onclose: ((reason?: Error) => void) | undefined;
  readonly #socket: Socket;
  #reason: Error | undefined;

  /** Takes over a connected socket. */
  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => this.onmessage?.(bytes));
    socket.on("drain", () => this.ondrain?.());
    socket.on("error", (error: NodeJS.ErrnoException) => {
      this.#reason = new XenError(error.code ?? "EIO", `xenstore socket: ${error.message}`, {
        cause: error,
      });
    });
    socket.on("close", () => this.onclose?.(this.#reason));
  }

  get writable(): boolean {
    return !this.#socket.writableNeedDrain;
  }

  /** The kernel has all that was sent. */
  protected get flushed(): boolean {
    return this.#socket.writableLength === 0;
  }

  send(bytes: Uint8Array): void {
    if (this.#socket.writable) this.#socket.write(bytes);
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Rejects with XenError and the code of connect(2). */
export function connectSocket(path: string): Promise<SocketTransport> {
  const { promise, resolve, reject } = Promise.withResolvers<SocketTransport>();
  const socket = connect(path);
  const failed = (error: NodeJS.ErrnoException): void => {
    const message = `no xenstore answers at ${path}: ${error.message}`;
    reject(new XenError(error.code ?? "EIO", message, { cause: error }));
  };
  socket.once("error", failed);
  socket.once("connect", () => {
    socket.off("error", failed);
    resolve(new SocketTransport(socket));
  });
  return promise;
}
