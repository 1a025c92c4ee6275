/**
 * A socket as the handshake reads it: exactly so many bytes, then writes that wait for a slow peer. Control plane.
 *
 * Invariant: nothing is read that was not asked for, beyond what the socket itself buffers; `release` hands that on.
 */
import type { Socket } from "node:net";
import { StoreError } from "../store/errors.ts";

export class HandshakeStream {
  readonly #socket: Socket;
  #error: Error | undefined;
  #ended = false;
  #wake: (() => void) | undefined;
  readonly #onError = (error: Error) => {
    this.#error = error;
  };
  readonly #onEnd = () => {
    this.#ended = true;
    this.#wake?.();
  };
  readonly #onReadable = () => this.#wake?.();

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("error", this.#onError);
    socket.on("end", this.#onEnd);
    socket.on("close", this.#onEnd);
    socket.on("readable", this.#onReadable);
  }

  /** Rejects with StoreError("ECONNRESET") when the peer ends first. */
  async read(length: number): Promise<Uint8Array> {
    if (length === 0) return new Uint8Array(0);
    for (;;) {
      const bytes = this.#socket.read(length) as Uint8Array | null;
      if (bytes !== null && bytes.length === length) return bytes;
      if (this.#ended || this.#socket.destroyed) {
        throw new StoreError(
          "ECONNRESET",
          this.#error?.message ?? "the peer closed the connection",
          {
            cause: this.#error,
          },
        );
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Resolves when the kernel has the bytes: a peer that does not read holds one write at most. */
  async write(bytes: Uint8Array): Promise<void> {
    const error = await new Promise<Error | null | undefined>((resolve) => {
      this.#socket.write(bytes, resolve);
    });
    if (error) throw new StoreError("ECONNRESET", error.message, { cause: error });
  }

  /** Answers with what was received beyond the handshake; the socket is the caller's again. */
  release(): Uint8Array {
    const socket = this.#socket;
    const rest = (socket.read() as Uint8Array | null) ?? new Uint8Array(0);
    socket.off("error", this.#onError);
    socket.off("end", this.#onEnd);
    socket.off("close", this.#onEnd);
    socket.off("readable", this.#onReadable);
    return rest;
  }
}
