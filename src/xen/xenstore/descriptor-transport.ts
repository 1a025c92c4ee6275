/**
 * A transport over a stream socket that is read and written by foreign calls: one read(2) and one write(2) for whatever
 * a turn brings, past Node's streams, whose cost is that of several requests.
 */
import { closeSync } from "node:fs";
import type { Socket } from "node:net";
import type { Ffi } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import { type Watcher, watchReadable } from "../../io/poller.ts";
import { takeSocket } from "../../io/socket-descriptor.ts";
import { SocketTransport } from "./socket-transport.ts";

/** Bytes read at once: a message has 4 KiB at most, so that these are many. */
const READ_BYTES = 32 * 1024;
/** Bytes written at once without Node's streams. */
const WRITE_BYTES = 128 * 1024;
const EAGAIN = 11;

/** Memory with an address, one for all transports of the thread: nothing stays in it from call to call. */
let scratch: { readonly bytes: Buffer; readonly address: number } | undefined;

function scratchMemory(): { readonly bytes: Buffer; readonly address: number } {
  if (scratch === undefined) {
    const { bytes, address } = allocateRegion(Math.max(READ_BYTES, WRITE_BYTES));
    scratch = { bytes: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), address };
  }
  return scratch;
}

/** Over the descriptor where this process can have it, else over the socket's stream. */
export function socketTransport(socket: Socket): SocketTransport {
  const taken = takeSocket(socket);
  if (taken === undefined) return new SocketTransport(socket);
  return new DescriptorTransport(socket, taken.calls, taken.descriptor);
}

class DescriptorTransport extends SocketTransport {
  readonly #calls: Ffi;
  readonly #descriptor: number;
  readonly #scratch = scratchMemory();
  readonly #onReadable = () => this.#read();
  #watcher: Watcher | undefined;
  #released = false;
  /** The socket waits with bytes that the kernel did not take at once, or did when we last looked. */
  #behind = false;

  constructor(socket: Socket, calls: Ffi, descriptor: number) {
    super(socket);
    this.#calls = calls;
    this.#descriptor = descriptor;
    socket.once("close", () => this.#release());
    this.resume();
  }

  override get writable(): boolean {
    return !this.#behind || super.writable;
  }

  override send(bytes: Uint8Array): void {
    let sent = 0;
    if (this.#behind) this.#behind = !this.flushed;
    if (!this.#released && !this.#behind && bytes.length <= WRITE_BYTES) {
      this.#scratch.bytes.set(bytes);
      sent = this.#calls.write(this.#descriptor, this.#scratch.address, bytes.length);
      if (sent === bytes.length) return;
    }
    this.#behind = true;
    // The socket waits for a slow reader better than we do, and knows what an error means.
    super.send(sent > 0 ? bytes.subarray(sent) : bytes);
  }

  override pause(): void {
    this.#watcher?.[Symbol.dispose]();
    this.#watcher = undefined;
  }

  override resume(): void {
    if (!this.#released) this.#watcher ??= watchReadable(this.#descriptor, this.#onReadable);
  }

  override close(): void {
    this.#release();
    super.close();
  }

  #read(): void {
    const count = this.#calls.read(this.#descriptor, this.#scratch.address, READ_BYTES);
    if (count > 0) {
      this.onmessage?.(Buffer.from(this.#scratch.bytes.subarray(0, count)));
    } else if (count === 0 || this.#calls.errno() !== EAGAIN) {
      this.close();
    }
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.pause();
    closeSync(this.#descriptor);
  }
}
