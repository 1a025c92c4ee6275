/**
 * Memory that requests may point into, in regions that an I/O engine can register.
 *
 * Invariant: whoever unmaps a region's memory disposes the region first, and an engine that was told so by
 * `onRelease` touches the region no more. A view does not own its mapping: using it after the unmapping is fatal.
 */

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
