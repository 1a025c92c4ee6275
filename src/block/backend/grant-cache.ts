/**
 * The pages of the peer that a ring has mapped: for one request, or kept from request to request where persistent
 * grants were agreed (blkback.c: xen_blkbk_map, add_persistent_gnt, put_persistent_gnt, xen_blkbk_unmap).
 *
 * Invariants: a reference is kept at most once; a kept page that is in use is not lent a second time (the second use
 * is mapped on its own); a request whose grants cannot all be mapped leaves no mapping behind; `clear` leaves none
 * at all, and `mapped` counts them.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { GrantMapBatch as Batch, type GrantMapBatch, type GrantTable } from "../../xen/domain.ts";

/** The pages of one request: fixed arrays, filled by `map` and given back by `unmap`. */
export class MappedPages {
  count = 0;
  /** Slot in the cache of kept pages, or -1 where `handles` holds a mapping of this request alone. */
  readonly slots: Int32Array;
  readonly handles: Uint32Array;
  readonly regions: (MemoryRegion | undefined)[];
  /** Byte in the region. */
  readonly starts: Float64Array;

  constructor(capacity: number) {
    this.slots = new Int32Array(capacity);
    this.handles = new Uint32Array(capacity);
    this.regions = new Array<MemoryRegion | undefined>(capacity).fill(undefined);
    this.starts = new Float64Array(capacity);
  }

  get capacity(): number {
    return this.handles.length;
  }
}

export class GrantCache {
  readonly #grants: GrantTable;
  readonly #peer: number;
  readonly #batch: GrantMapBatch;
  /** Index in the request of each entry of the batch. */
  readonly #batchIndex: Int32Array;
  /** Reference to slot, of the kept pages. */
  readonly #slots = new Map<number, number>();
  readonly #keptHandles: Uint32Array;
  readonly #keptRegions: (MemoryRegion | undefined)[];
  readonly #keptStarts: Float64Array;
  readonly #inUse: Uint8Array;
  #keptCount = 0;
  /** Mappings of requests in flight that are not kept. */
  #lent = 0;
  /** A request found no room to be kept: the frontend uses more pages than we keep. */
  overflowed = false;

  /** `capacity` 0 keeps nothing: persistent grants were not agreed. `batch` bounds the pages of one request. */
  constructor(grants: GrantTable, peer: number, capacity: number, batch: number) {
    this.#grants = grants;
    this.#peer = peer;
    this.#batch = new Batch(batch);
    this.#batchIndex = new Int32Array(batch);
    this.#keptHandles = new Uint32Array(capacity);
    this.#keptRegions = new Array<MemoryRegion | undefined>(capacity).fill(undefined);
    this.#keptStarts = new Float64Array(capacity);
    this.#inUse = new Uint8Array(capacity);
  }

  /** Kept pages. */
  get kept(): number {
    return this.#keptCount;
  }

  /** Pages of the peer that are mapped now, kept or not. */
  get mapped(): number {
    return this.#keptCount + this.#lent;
  }

  get #persistent(): boolean {
    return this.#keptHandles.length > 0;
  }

  /** Maps `count` references into `pages`; false, with nothing mapped, when any of them cannot be. A page that may be
   * kept is mapped writable whatever this request does, because the next may do the other (blkback does the same). */
  map(references: Uint32Array, count: number, readOnly: boolean, pages: MappedPages): boolean {
    const batch = this.#batch;
    const persistent = this.#persistent;
    const access = readOnly && !persistent ? 1 : 0;
    let wanted = 0;
    for (let i = 0; i < count; i++) {
      const reference = references[i]!;
      if (persistent) {
        const slot = this.#slots.get(reference);
        if (slot !== undefined && this.#inUse[slot] === 0) {
          this.#inUse[slot] = 1;
          pages.slots[i] = slot;
          pages.regions[i] = this.#keptRegions[slot];
          pages.starts[i] = this.#keptStarts[slot]!;
          continue;
        }
      }
      pages.slots[i] = -1;
      batch.references[wanted] = reference;
      batch.readOnly[wanted] = access;
      this.#batchIndex[wanted++] = i;
    }
    pages.count = count;
    return wanted === 0 || this.#mapBatch(wanted, pages);
  }

  #mapBatch(wanted: number, pages: MappedPages): boolean {
    const batch = this.#batch;
    batch.count = wanted;
    this.#grants.map(this.#peer, batch);
    let failed = false;
    for (let k = 0; k < wanted; k++) failed ||= batch.statuses[k] !== 0;
    if (failed) {
      // Exactly what was mapped is unmapped, and kept pages are put back.
      for (let k = 0; k < wanted; k++) {
        if (batch.statuses[k] === 0) this.#grants.unmap(batch.handles[k]!);
      }
      for (let i = 0; i < pages.count; i++) {
        if (pages.slots[i]! >= 0) this.#inUse[pages.slots[i]!] = 0;
      }
      pages.count = 0;
      return false;
    }
    for (let k = 0; k < wanted; k++) {
      const i = this.#batchIndex[k]!;
      pages.regions[i] = batch.regions[k];
      pages.starts[i] = batch.starts[k]!;
      pages.handles[i] = batch.handles[k]!;
      pages.slots[i] = this.#keep(batch, k);
      if (pages.slots[i]! < 0) this.#lent++;
    }
    return true;
  }

  /** The slot that keeps mapping `k` of the batch from now on, in use; or -1. */
  #keep(batch: GrantMapBatch, k: number): number {
    if (!this.#persistent) return -1;
    const reference = batch.references[k]!;
    if (this.#slots.has(reference)) return -1;
    if (this.#keptCount === this.#keptHandles.length) {
      this.overflowed = true;
      return -1;
    }
    const slot = this.#keptCount++;
    this.#slots.set(reference, slot);
    this.#keptHandles[slot] = batch.handles[k]!;
    this.#keptRegions[slot] = batch.regions[k];
    this.#keptStarts[slot] = batch.starts[k]!;
    this.#inUse[slot] = 1;
    return slot;
  }

  /** Gives the pages of a request back. */
  unmap(pages: MappedPages): void {
    for (let i = 0; i < pages.count; i++) {
      const slot = pages.slots[i]!;
      if (slot >= 0) this.#inUse[slot] = 0;
      else {
        this.#grants.unmap(pages.handles[i]!);
        this.#lent--;
      }
      pages.regions[i] = undefined;
    }
    pages.count = 0;
  }

  /** Unmaps every kept page. No request may be in flight. */
  clear(): void {
    invariant(this.#lent === 0, "a request in flight still maps pages");
    for (let slot = 0; slot < this.#keptCount; slot++) {
      invariant(this.#inUse[slot] === 0, "a request in flight still uses a kept page");
      this.#grants.unmap(this.#keptHandles[slot]!);
      this.#keptRegions[slot] = undefined;
    }
    this.#slots.clear();
    this.#keptCount = 0;
  }
}
