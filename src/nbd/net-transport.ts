/**
 * A transport over net.Socket: works on every machine, Unix and TCP.
 *
 * Small pieces are copied into one staging buffer, large ones are written where they lie; a batch is one corked write.
 * Invariant: one batch at a time is with the socket, so that the staging buffer is free whenever a batch begins.
 */
import type { Socket } from "node:net";
import type { MemoryRegion } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { SendQueue, type Transport, type TransportUser } from "./transport.ts";

/** A copy of this many bytes costs about as much as a stream write of its own. */
const COPY_LIMIT = 16 * 1024;
/** Of small pieces in one batch. */
const STAGING_BYTES = 256 * 1024;
/** Bytes of one batch; more gain nothing, and the pieces stay locked longer. */
const BATCH_BYTES = 4 * 1024 * 1024;

export class NetTransport implements Transport {
  protected readonly socket: Socket;
  protected readonly reactor: Reactor;
  protected readonly queue: SendQueue = new SendQueue();
  #staging: Buffer | undefined;
  protected user: TransportUser | undefined;
  #gathered = 0;
  #sent = 0;
  #batchEnd = 0;
  /** The socket has a batch that the kernel has not taken yet. */
  protected busy = false;
  #feeding = false;
  /** Received, but the user has no room for it yet. */
  #rest: Uint8Array | undefined;
  protected error: Error | undefined;
  readonly #batchSent = () => this.#written();

  /** `received` are bytes that came in with the handshake's last. */
  constructor(socket: Socket, received: Uint8Array, reactor: Reactor) {
    this.socket = socket;
    this.reactor = reactor;
    if (received.length > 0) this.#rest = received;
  }

  get gathered(): number {
    return this.#gathered;
  }

  get sent(): number {
    return this.#sent;
  }

  start(user: TransportUser): void {
    this.listen(user);
    const socket = this.socket;
    // A peer that half-closes has said its last word.
    socket.on("end", () => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      this.#feed(chunk);
      this.reactor.settle();
    });
    this.resume();
  }

  protected listen(user: TransportUser): void {
    this.user = user;
    const socket = this.socket;
    socket.on("error", (error) => {
      this.error ??= error;
    });
    socket.on("close", () => {
      this.queue.clear();
      user.closed(this.error);
      this.reactor.settle();
    });
    if (socket.closed) queueMicrotask(() => user.closed(undefined));
  }

  resume(): void {
    if (this.feedRest()) this.socket.resume();
  }

  /** Gives the user what it had no room for; false where it still has none. */
  protected feedRest(): boolean {
    if (this.#feeding || this.socket.destroyed) return false;
    const rest = this.#rest;
    this.#rest = undefined;
    if (rest !== undefined) this.#feed(rest);
    return this.#rest === undefined;
  }

  #feed(chunk: Uint8Array): void {
    const user = this.user!;
    const target = user.target;
    this.#feeding = true;
    let at = 0;
    while (at < chunk.length && target.length > 0) {
      const count = Math.min(chunk.length - at, target.length);
      target.region!.bytes.set(
        at === 0 && count === chunk.length ? chunk : chunk.subarray(at, at + count),
        target.start,
      );
      at += count;
      user.received(count);
    }
    this.#feeding = false;
    if (at < chunk.length) {
      this.#rest = chunk.subarray(at);
      this.socket.pause();
    }
  }

  gather(region: MemoryRegion, start: number, length: number): void {
    this.queue.push(region, start, length);
    this.#gathered += length;
  }

  flush(): void {
    while (!this.busy && this.queue.count > 0) this.#sendBatch();
  }

  #sendBatch(): void {
    const socket = this.socket;
    if (socket.destroyed) {
      this.queue.clear();
      return;
    }
    const queue = this.queue;
    const staging = this.#stagingBuffer();
    let total = 0;
    let stagedFrom = 0;
    let staged = 0;
    socket.cork();
    for (let i = 0; i < queue.count && total < BATCH_BYTES; i++) {
      const length = queue.length(i);
      const bytes = queue.region(i).bytes;
      const start = queue.start(i);
      if (length <= COPY_LIMIT) {
        if (staged + length > STAGING_BYTES) break;
        staging.set(bytes.subarray(start, start + length), staged);
        staged += length;
      } else {
        if (staged > stagedFrom) socket.write(staging.subarray(stagedFrom, staged));
        stagedFrom = staged;
        socket.write(bytes.subarray(start, start + length));
      }
      total += length;
    }
    if (staged > stagedFrom) socket.write(staging.subarray(stagedFrom, staged));
    socket.uncork();
    queue.drop(total);
    this.#batchEnd += total;
    if (socket.writableLength === 0) this.#sent = this.#batchEnd;
    else {
      this.busy = true;
      // An empty write calls back once everything before it is with the kernel.
      socket.write("", this.#batchSent);
    }
  }

  /** `bytes` of the queue's front are with the kernel. */
  protected advance(bytes: number): void {
    this.queue.drop(bytes);
    this.#batchEnd += bytes;
    this.#sent = this.#batchEnd;
  }

  #stagingBuffer(): Buffer {
    this.#staging ??= Buffer.allocUnsafeSlow(STAGING_BYTES);
    return this.#staging;
  }

  #written(): void {
    this.busy = false;
    this.#sent = this.#batchEnd;
    this.flush();
    this.user!.progressed();
    this.reactor.settle();
  }

  close(): void {
    this.socket.destroy();
  }
}
