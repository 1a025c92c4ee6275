/**
 * Bytes to and from one NBD peer once the handshake is over: the small interface between a connection and the way
 * its socket is read and written. `net-transport.ts` works everywhere; `descriptor-transport.ts` needs foreign calls.
 *
 * Invariant: memory that was gathered is not touched by its owner until `sent` has passed it, and memory that was
 * offered for receiving is not touched by the transport outside its callbacks. After `closed` it touches neither.
 */
import type { MemoryRegion } from "../io/memory.ts";

/** Where the next bytes from the peer go. */
export class ReceiveTarget {
  region: MemoryRegion | undefined = undefined;
  /** Byte in the region. */
  start = 0;
  /** Bytes; 0 pauses the peer. */
  length = 0;

  set(region: MemoryRegion, start: number, length: number): void {
    this.region = region;
    this.start = start;
    this.length = length;
  }
}

export interface TransportUser {
  readonly target: ReceiveTarget;
  /** `count` bytes lie at the target, which the user moves on before it returns. */
  received(count: number): void;
  /** `transport.sent` has grown, outside `flush`. */
  progressed(): void;
  /** Once, whoever closed; `error` where it was not an orderly end. */
  closed(error: Error | undefined): void;
}

export interface Transport {
  /** Bytes gathered since the beginning. */
  readonly gathered: number;
  /** Of them, bytes whose memory is the owner's again. */
  readonly sent: number;
  /** Begins to receive. Once. */
  start(user: TransportUser): void;
  /** Adds memory to what the next flush sends. */
  gather(region: MemoryRegion, start: number, length: number): void;
  /** Sends what was gathered, in as few system calls as it can. */
  flush(): void;
  /** The target, once empty, has room again. */
  resume(): void;
  /** Drops what was not sent. `closed` follows in a later turn. */
  close(): void;
}

/** Pieces of memory in the order they go out; grows to the most that was ever waiting, then allocates no more. */
export class SendQueue {
  #regions: (MemoryRegion | undefined)[] = new Array<MemoryRegion | undefined>(64).fill(undefined);
  #starts = new Float64Array(64);
  #lengths = new Float64Array(64);
  #head = 0;
  #count = 0;

  get count(): number {
    return this.#count;
  }

  push(region: MemoryRegion, start: number, length: number): void {
    if (this.#count === this.#lengths.length) this.#grow();
    const at = (this.#head + this.#count) & (this.#lengths.length - 1);
    this.#regions[at] = region;
    this.#starts[at] = start;
    this.#lengths[at] = length;
    this.#count++;
  }

  region(index: number): MemoryRegion {
    return this.#regions[(this.#head + index) & (this.#lengths.length - 1)]!;
  }

  start(index: number): number {
    return this.#starts[(this.#head + index) & (this.#lengths.length - 1)]!;
  }

  length(index: number): number {
    return this.#lengths[(this.#head + index) & (this.#lengths.length - 1)]!;
  }

  /** Takes `bytes` from the front. */
  drop(bytes: number): void {
    while (bytes > 0) {
      const length = this.#lengths[this.#head]!;
      if (bytes < length) {
        this.#starts[this.#head] = this.#starts[this.#head]! + bytes;
        this.#lengths[this.#head] = length - bytes;
        return;
      }
      bytes -= length;
      this.#regions[this.#head] = undefined;
      this.#head = (this.#head + 1) & (this.#lengths.length - 1);
      this.#count--;
    }
  }

  clear(): void {
    this.#regions.fill(undefined);
    this.#count = 0;
  }

  #grow(): void {
    const size = this.#lengths.length * 2;
    const regions = new Array<MemoryRegion | undefined>(size).fill(undefined);
    const starts = new Float64Array(size);
    const lengths = new Float64Array(size);
    for (let i = 0; i < this.#count; i++) {
      regions[i] = this.region(i);
      starts[i] = this.start(i);
      lengths[i] = this.length(i);
    }
    this.#regions = regions;
    this.#starts = starts;
    this.#lengths = lengths;
    this.#head = 0;
  }
}
