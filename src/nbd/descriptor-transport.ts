/**
 * A transport that reads and writes the socket's descriptor by foreign calls: read(2) straight into the memory the
 * user offers, writev(2) straight from the memory it gathered (socket-descriptor.ts).
 */
import type { Socket } from "node:net";
import type { Ffi } from "../io/ffi.ts";
import { allocateRegion } from "../io/memory.ts";
import { type Watcher, watchReadable } from "../io/poller.ts";
import type { Reactor } from "../io/reactor.ts";
import { takeSocket } from "../io/socket-descriptor.ts";
import { Errno, errnoName, StoreError } from "../store/errors.ts";
import { NetTransport } from "./net-transport.ts";
import type { TransportUser } from "./transport.ts";

/** Pieces of one writev: IOV_MAX. */
const MAX_VECTORS = 1024;
/** sizeof(struct iovec) on a 64-bit machine. */
const VECTOR_BYTES = 16;
/** Bytes read in one turn, so that a busy peer does not starve the others. */
const TURN_BYTES = 1024 * 1024;

export class DescriptorTransport extends NetTransport {
  readonly #calls: Ffi;
  readonly #descriptor: number;
  readonly #vectors = allocateRegion(MAX_VECTORS * VECTOR_BYTES);
  readonly #words: Uint32Array;
  #watcher: Watcher | undefined;
  #released = false;
  readonly #onReadable = () => this.#read();

  private constructor(
    calls: Ffi,
    descriptor: number,
    socket: Socket,
    received: Uint8Array,
    reactor: Reactor,
  ) {
    super(socket, received, reactor);
    this.#calls = calls;
    this.#descriptor = descriptor;
    const { buffer, byteOffset, byteLength } = this.#vectors.bytes;
    this.#words = new Uint32Array(buffer, byteOffset, byteLength / 4);
  }

  /** undefined where this process, or this version of Node, does not let us; the socket is untouched then. */
  static take(socket: Socket, received: Uint8Array, reactor: Reactor): NetTransport | undefined {
    const taken = takeSocket(socket);
    if (taken === undefined) return undefined;
    const { calls, descriptor } = taken;
    return new DescriptorTransport(calls, descriptor, socket, received, reactor);
  }

  override start(user: TransportUser): void {
    this.socket.once("close", () => this.#release());
    this.listen(user);
    this.resume();
  }

  override resume(): void {
    if (!this.feedRest() || this.user!.target.length === 0 || this.#released) return;
    this.#watcher ??= watchReadable(this.#descriptor, this.#onReadable);
  }

  #pause(): void {
    this.#watcher?.[Symbol.dispose]();
    this.#watcher = undefined;
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#pause();
    this.#calls.close(this.#descriptor);
    this.#vectors[Symbol.dispose]();
  }

  #read(): void {
    const user = this.user!;
    const target = user.target;
    for (let budget = TURN_BYTES; budget > 0 && !this.#released; ) {
      const wanted = target.length;
      if (wanted === 0) {
        this.#pause();
        break;
      }
      const count = this.#calls.read(
        this.#descriptor,
        target.region!.address + target.start,
        wanted,
      );
      if (count <= 0) {
        if (count < 0 && this.#calls.errno() === Errno.EAGAIN) break;
        if (count < 0) this.#fail("read");
        this.close();
        break;
      }
      user.received(count);
      // Less than asked for: the socket is empty, and the next read would only say so.
      if (count < wanted) break;
      budget -= count;
    }
    this.reactor.settle();
  }

  #fail(call: string): void {
    const code = errnoName(this.#calls.errno());
    this.error ??= new StoreError(code, `${call}: ${code}`);
  }

  override flush(): void {
    while (!this.busy && this.queue.count > 0 && !this.#released) {
      let total = 0;
      const { queue } = this;
      const count = Math.min(queue.count, MAX_VECTORS);
      const words = this.#words;
      for (let i = 0; i < count; i++) {
        const address = queue.region(i).address + queue.start(i);
        const length = queue.length(i);
        words[i * 4] = address;
        words[i * 4 + 1] = address / 2 ** 32;
        words[i * 4 + 2] = length;
        words[i * 4 + 3] = 0;
        total += length;
      }
      // With offset -1, pwritev2(2) is writev(2).
      const sent = this.#calls.pwritev2(this.#descriptor, this.#vectors.address, count, -1, 0);
      if (sent < 0 && this.#calls.errno() !== Errno.EAGAIN) {
        this.#fail("writev");
        this.close();
        return;
      }
      if (sent > 0) this.advance(sent);
      // The socket waits for the peer better than we do.
      if (sent < total) super.flush();
    }
  }

  override close(): void {
    this.#release();
    super.close();
  }
}
