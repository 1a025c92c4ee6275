/**
 * A transport over a stream socket that costs one read(2) and one write(2) for whatever a turn brings, and little else.
 * It is written by foreign calls, past Node's streams, whose cost is that of several requests; it is read by libuv into
 * memory of ours, which Node offers for sockets that it makes itself, so for a second one of the same connection.
 *
 * Invariant: the descriptor is the reader's, and written only while the reader has it.
 */
import { Socket } from "node:net";
import type { Ffi } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import { takeSocket } from "../../io/socket-descriptor.ts";
import { SocketTransport } from "./socket-transport.ts";

/** Bytes read at once: a message has 4 KiB at most, so that these are many. */
const READ_BYTES = 32 * 1024;
/** Bytes written at once without Node's streams. */
const WRITE_BYTES = 128 * 1024;

interface Scratch {
  readonly incoming: Buffer;
  readonly outgoing: Uint8Array;
  readonly outgoingAddress: number;
}

/** One for all transports of the thread: nothing stays in it from call to call. */
let scratch: Scratch | undefined;

function scratchMemory(): Scratch {
  if (scratch === undefined) {
    const { bytes, address } = allocateRegion(WRITE_BYTES);
    const incoming = Buffer.allocUnsafeSlow(READ_BYTES);
    scratch = { incoming, outgoing: bytes, outgoingAddress: address };
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
  readonly #reader: Socket;
  /** The socket waits with bytes that the kernel did not take at once, or did when we last looked. */
  #behind = false;

  constructor(socket: Socket, calls: Ffi, descriptor: number) {
    super(socket);
    this.#calls = calls;
    this.#descriptor = descriptor;
    const { incoming } = this.#scratch;
    this.#reader = new Socket({
      fd: descriptor,
      writable: false,
      onread: {
        buffer: incoming,
        callback: (count) => {
          const bytes = Buffer.allocUnsafe(count);
          incoming.copy(bytes, 0, 0, count);
          this.onmessage?.(bytes);
          return true;
        },
      },
    });
    // A client that is gone in the midst of something is gone like any other.
    this.#reader.on("error", () => {});
    this.#reader.once("close", () => this.close());
    socket.once("close", () => this.#reader.destroy());
  }

  override get writable(): boolean {
    return !this.#behind || super.writable;
  }

  override send(bytes: Uint8Array): void {
    let sent = 0;
    if (this.#behind) this.#behind = !this.flushed;
    if (!this.#reader.destroyed && !this.#behind && bytes.length <= WRITE_BYTES) {
      const { outgoing, outgoingAddress } = this.#scratch;
      outgoing.set(bytes);
      sent = this.#calls.write(this.#descriptor, outgoingAddress, bytes.length);
      if (sent === bytes.length) return;
    }
    this.#behind = true;
    // The socket waits for a slow reader better than we do, and knows what an error means.
    super.send(sent > 0 ? bytes.subarray(sent) : bytes);
  }

  override pause(): void {
    this.#reader.pause();
  }

  override resume(): void {
    this.#reader.resume();
  }

  override close(): void {
    this.#reader.destroy();
    super.close();
  }
}
