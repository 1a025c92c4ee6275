/**
 * A transport over a MessagePort, for a domain that lives in a worker. A message is bytes, or a number: so many bytes
 * that the other end has taken, since ports have no back-pressure of their own.
 *
 * Invariant: at most MAX_BYTES wait at either end; a peer that sends more without being granted it is cut off.
 */
import { MessagePort } from "node:worker_threads";
import { XenError } from "../domain.ts";
import type { XenStoreTransport } from "./transport.ts";

/** Bytes sent and not yet taken before `writable` turns false. */
const HIGH_WATER_BYTES = 64 * 1024;
const MAX_BYTES = 4 * 1024 * 1024;

export class MessagePortTransport implements XenStoreTransport {
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  ondrain: (() => void) | undefined;
  onclose: ((reason?: Error) => void) | undefined;
  readonly #port: MessagePort;
  #sentBytes = 0;
  #held: Uint8Array[] = [];
  #heldBytes = 0;
  #paused = false;
  #closed = false;
  #reason: Error | undefined;

  /** Takes over a port whose other end is given to another MessagePortTransport. */
  constructor(port: MessagePort) {
    this.#port = port;
    port.on("message", (message: unknown) => this.#receive(message));
    port.on("messageerror", () => this.#break("EBADMSG", "sent what cannot be read"));
    port.on("close", () => {
      this.#closed = true;
      this.onclose?.(this.#reason);
    });
  }

  get writable(): boolean {
    return this.#sentBytes < HIGH_WATER_BYTES;
  }

  send(bytes: Uint8Array): void {
    if (this.#closed) return;
    this.#sentBytes += bytes.length;
    // A copy of exactly these bytes: the port would clone the whole buffer behind a view.
    this.#port.postMessage(Uint8Array.from(bytes));
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    while (!this.#paused && this.#held.length > 0) this.#take(this.#held.shift()!);
  }

  close(): void {
    this.#closed = true;
    this.#held = [];
    this.#port.close();
  }

  #receive(message: unknown): void {
    if (this.#closed) return;
    if (typeof message === "number") this.#granted(message);
    // Shared memory could change under the parser.
    else if (message instanceof Uint8Array && message.buffer instanceof ArrayBuffer) {
      this.#hold(message);
    } else this.#break("EBADMSG", "sent no bytes");
  }

  #hold(bytes: Uint8Array): void {
    this.#heldBytes += bytes.length;
    if (this.#heldBytes > MAX_BYTES) this.#break("ENOBUFS", "sends without waiting");
    else if (this.#paused || this.#held.length > 0) this.#held.push(bytes);
    else this.#take(bytes);
  }

  #take(bytes: Uint8Array): void {
    this.#heldBytes -= bytes.length;
    if (!this.#closed) this.#port.postMessage(bytes.length);
    this.onmessage?.(bytes);
  }

  #granted(bytes: number): void {
    if (bytes > 0 && bytes <= this.#sentBytes) {
      const wasFull = !this.writable;
      this.#sentBytes -= bytes;
      if (wasFull && this.writable) this.ondrain?.();
    } else this.#break("EBADMSG", "took more than was sent");
  }

  #break(code: string, what: string): void {
    this.#reason = new XenError(code, `the other end of a xenstore port ${what}`);
    this.close();
  }
}

/** The transport that is meant where either may be given. */
export function transportOver(end: XenStoreTransport | MessagePort): XenStoreTransport {
  return end instanceof MessagePort ? new MessagePortTransport(end) : end;
}
