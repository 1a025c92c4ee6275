/**
 * Recycled memory for payloads, in powers of two.
 *
 * Small buffers are cut from slabs, large ones are regions of their own. What is given back is kept for the next, up
 * to a bound; the pool's users bound what is out. Invariant: a slab's region is disposed only while all of it is here.
 */
import type { MemoryRegion } from "../io/memory.ts";
import { allocateFor } from "../store/allocate-for.ts";
import type { BlockStore } from "../store/block-store.ts";

/** 4 KiB, the smallest buffer: a page, so that every buffer is aligned for O_DIRECT. */
const SMALLEST_SHIFT = 12;
/** Buffers below this are cut from a slab of it: one registration with an engine for many of them. */
const SLAB_BYTES = 1024 * 1024;
/** Free bytes kept for the clients of one store: a few of the largest bursts; a fresh large buffer per request halves the throughput. */
const KEPT_BYTES = 64 * 1024 * 1024;

export interface PooledBuffer {
  readonly region: MemoryRegion;
  /** Byte in the region. */
  readonly start: number;
  /** Bytes. */
  readonly capacity: number;
}

interface Slab {
  readonly region: MemoryRegion;
  readonly buffers: SlabBuffer[];
  free: number;
}
interface SlabBuffer extends PooledBuffer {
  readonly slab: Slab;
  readonly sizeClass: number;
}

export class BufferPool implements Disposable {
  readonly #store: BlockStore;
  readonly #free: SlabBuffer[][] = [];
  #freeBytes = 0;
  #disposed = false;

  /** Memory for requests to `store`. */
  constructor(store: BlockStore) {
    this.#store = store;
  }

  /** Memory of at least `length` bytes, with whatever it held before. */
  take(length: number): PooledBuffer {
    const sizeClass =
      length <= 1 << SMALLEST_SHIFT ? 0 : 32 - Math.clz32(length - 1) - SMALLEST_SHIFT;
    const free = this.#free[sizeClass] ?? [];
    this.#free[sizeClass] = free;
    if (free.length === 0) this.#addSlab(sizeClass, free);
    const buffer = free.pop()!;
    buffer.slab.free--;
    this.#freeBytes -= buffer.capacity;
    return buffer;
  }

  /** The capacity that `take(length)` would give. */
  static capacity(length: number): number {
    return length <= 1 << SMALLEST_SHIFT ? 1 << SMALLEST_SHIFT : 2 ** (32 - Math.clz32(length - 1));
  }

  give(pooled: PooledBuffer): void {
    const buffer = pooled as SlabBuffer;
    const slab = buffer.slab;
    this.#free[buffer.sizeClass]!.push(buffer);
    slab.free++;
    this.#freeBytes += buffer.capacity;
    if (slab.free === slab.buffers.length && (this.#disposed || this.#freeBytes > KEPT_BYTES)) {
      this.#drop(slab);
    }
  }

  #addSlab(sizeClass: number, free: SlabBuffer[]): void {
    const capacity = 2 ** (sizeClass + SMALLEST_SHIFT);
    const byteLength = Math.max(capacity, SLAB_BYTES);
    const slab: Slab = { region: allocateFor(this.#store, byteLength), buffers: [], free: 0 };
    for (let start = 0; start < byteLength; start += capacity) {
      slab.buffers.push({ region: slab.region, start, capacity, slab, sizeClass });
    }
    // Taken from the end: the lowest addresses are used first and stay warm.
    for (let i = slab.buffers.length - 1; i >= 0; i--) free.push(slab.buffers[i]!);
    slab.free = slab.buffers.length;
    this.#freeBytes += byteLength;
  }

  #drop(slab: Slab): void {
    const sizeClass = slab.buffers[0]!.sizeClass;
    this.#free[sizeClass] = this.#free[sizeClass]!.filter((buffer) => buffer.slab !== slab);
    this.#freeBytes -= slab.region.bytes.length;
    slab.region[Symbol.dispose]();
  }

  /** Frees what is here now. */
  trim(): void {
    const slabs = new Set(this.#free.flat().map((buffer) => buffer.slab));
    for (const slab of slabs) if (slab.free === slab.buffers.length) this.#drop(slab);
  }

  /** Frees what is here now, and the rest as it is given back. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.trim();
  }
}
