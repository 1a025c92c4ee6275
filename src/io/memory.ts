/**
 * Memory that requests may point into, in regions that an I/O engine can register.
 *
 * Invariant: whoever unmaps a region's memory disposes the region first, and an engine that was told so by
 * `onRelease` touches the region no more. A view does not own its mapping: using it after the unmapping is fatal.
 */
import { ffi } from "./ffi.ts";

/** What the kernel maps, what O_DIRECT is always content with, and what a grant covers. */
const ALIGNMENT = 4096;

/** A run of memory with a small dense id: a domain's memory, an NBD buffer pool, a cache. */
export class MemoryRegion implements Disposable {
  static readonly #freeIds: number[] = [];
  static #nextId = 0;

  /** Small and dense, reused after disposal: an engine may index its registered buffers with it. */
  readonly id: number;
  readonly bytes: Uint8Array;
  /** Address of bytes[0], below 2^47; 0 where the process has no foreign calls. */
  readonly address: number;
  readonly #listeners = new Set<(region: MemoryRegion) => void>();
  readonly #unmap: (() => void) | undefined;
  #disposed = false;

  /** `unmap` runs once at disposal, after every listener. */
  constructor(bytes: Uint8Array, address: number, unmap?: () => void) {
    this.id = MemoryRegion.#freeIds.pop() ?? MemoryRegion.#nextId++;
    this.bytes = bytes;
    this.address = address;
    this.#unmap = unmap;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Runs before the memory is unmapped; engines take their registration back here. */
  onRelease(listener: (region: MemoryRegion) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const listener of this.#listeners) listener(this);
    this.#listeners.clear();
    this.#unmap?.();
    MemoryRegion.#freeIds.push(this.id);
  }
}

/** Where the data of a request lies: parallel arrays, neighbours already merged; frozen while in flight. */
export class SegmentList {
  count = 0;
  readonly regions: (MemoryRegion | undefined)[];
  /** Byte in its region where each segment starts. */
  readonly starts: Float64Array;
  /** Bytes of each segment. */
  readonly lengths: Uint32Array;

  constructor(capacity: number) {
    this.regions = new Array<MemoryRegion | undefined>(capacity).fill(undefined);
    this.starts = new Float64Array(capacity);
    this.lengths = new Uint32Array(capacity);
  }

  get capacity(): number {
    return this.lengths.length;
  }

  clear(): void {
    this.count = 0;
  }

  /** Adds a run of bytes, merged with the last one where they touch. The caller bounds the number of segments. */
  add(region: MemoryRegion, start: number, length: number): void {
    const last = this.count - 1;
    if (
      last >= 0 &&
      this.regions[last] === region &&
      this.starts[last]! + this.lengths[last]! === start
    ) {
      this.lengths[last] = this.lengths[last]! + length;
      return;
    }
    this.regions[this.count] = region;
    this.starts[this.count] = start;
    this.lengths[this.count] = length;
    this.count++;
  }
}

/** The region that `bytes` makes up: memory that JavaScript owns, of this thread or shared with another. */
export function regionOver(bytes: Uint8Array): MemoryRegion {
  return new MemoryRegion(bytes, ffi()?.addressOf(bytes) ?? 0);
}

/** Zeroed memory in a SharedArrayBuffer, which a worker may be sent; page-aligned where the process can see
 * addresses. Never unmapped under a view. */
export function allocateRegion(byteLength: number): MemoryRegion {
  const calls = ffi();
  if (calls === undefined) {
    return new MemoryRegion(new Uint8Array(new SharedArrayBuffer(byteLength)), 0);
  }
  const whole = new Uint8Array(new SharedArrayBuffer(byteLength + ALIGNMENT));
  const skip = -calls.addressOf(whole) & (ALIGNMENT - 1);
  return regionOver(whole.subarray(skip, skip + byteLength));
}
