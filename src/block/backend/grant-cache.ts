/**
 * The pages of the peer that a ring has mapped: for one request, or kept from request to request where persistent
 * grants were agreed (blkback.c: xen_blkbk_map, add_persistent_gnt, put_persistent_gnt, xen_blkbk_unmap,
 * purge_persistent_gnt as Linux has it today).
 *
 * Invariants: a reference is kept at most once; a kept page that is in use is neither lent a second time (the second
 * use is mapped on its own) nor given back; a request whose grants cannot all be mapped leaves no mapping behind;
 * `clear` leaves none at all, and `mapped` counts them.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { GrantMapBatch as Batch, type GrantMapBatch, type GrantTable } from "../../xen/domain.ts";
import { KeptReferences } from "./kept-references.ts";
import type { RequestPages } from "./request-pages.ts";

export interface GrantCacheOptions {
  readonly grants: GrantTable;
  readonly peer: number;
  /** Pages kept at most; 0 keeps nothing: persistent grants were not agreed. */
  readonly capacity: number;
  /** Pages of one request at most. */
  readonly batch: number;
  /** Pages mapped at once beside those kept. Unlimited if absent. */
  readonly bufferPages?: number;
  /** A kept page that was not used for so long is old; 0 for never, as if absent. Milliseconds. */
  readonly unusedMilliseconds?: number;
}

/** Of the limit, what a full cache gives back at a time: room for others, most of what is hot stays. */
const CLEAN_PERCENT = 5;

/** Slots to begin with: a few requests' pages. */
const FIRST_SLOTS = 64;

export class GrantCache {
  readonly #grants: GrantTable;
  readonly #peer: number;
  readonly #bufferPages: number;
  readonly #unusedMilliseconds: number;
  /** Pages are kept. A field, because V8 looks private getters up anew each time. */
  readonly #persistent: boolean;
  readonly #batch: GrantMapBatch;
  /** Index in the request of each entry of the batch. */
  readonly #batchIndex: Int32Array;
  readonly #slots = new KeptReferences();
  readonly #capacity: number;
  /** Slots there are; more are made when all are taken, up to the capacity. */
  #slotCount = 0;
  #keptReferences = new Uint32Array(0);
  #keptHandles = new Uint32Array(0);
  /** undefined where the slot is free. */
  readonly #keptRegions: (MemoryRegion | undefined)[] = [];
  #keptStarts = new Float64Array(0);
  #inUse = new Uint8Array(0);
  /** Used since the last scan that gave pages back. */
  #used = new Uint8Array(0);
  /** By `now`. Milliseconds. */
  #lastUsed = new Float64Array(0);
  /** A stack, whose top is used next. */
  #freeSlots = new Int32Array(0);
  #freeCount = 0;
  /** Handles that are given up and still mapped. */
  #purged = new Uint32Array(0);
  #purgedCount = 0;
  /** Mappings of requests in flight that are not kept. */
  #lent = 0;
  /** A request found no room to be kept: the frontend uses more pages than we keep. */
  overflowed = false;
  /** The time that use is noted with: its owner sets it once a batch, which is exact enough. Milliseconds. */
  now = 0;

  constructor(options: GrantCacheOptions) {
    const { capacity, batch } = options;
    this.#grants = options.grants;
    this.#peer = options.peer;
    this.#bufferPages = options.bufferPages ?? Number.POSITIVE_INFINITY;
    this.#unusedMilliseconds = options.unusedMilliseconds ?? 0;
    this.#persistent = capacity > 0;
    this.#batch = new Batch(batch);
    // A kept page is given back alone, pages of one request with the request.
    this.#batch.together = capacity === 0;
    this.#batchIndex = new Int32Array(batch);
    this.#capacity = capacity;
  }

  /** Kept pages. */
  get kept(): number {
    return this.#slotCount - this.#freeCount;
  }

  /** Pages given up by `scan` and not unmapped yet. */
  get purged(): number {
    return this.#purgedCount;
  }

  /** Pages of the peer that are mapped now, kept or not. */
  get mapped(): number {
    return this.kept + this.#purgedCount + this.#lent;
  }

  /** Whether a request of `count` pages may begin now, with `copied` pages of others in flight that are not mapped. One
   * alone always may, so that all go on. */
  hasRoom(count: number, copied: number = 0): boolean {
    const lent = this.#lent + copied;
    return lent === 0 || lent + count <= this.#bufferPages;
  }

  /** Maps `count` references into `pages`; false, with nothing mapped, when any of them cannot be. A page that may be
   * kept is mapped writable whatever this request does, because the next may do the other (blkback does the same). */
  map(references: Uint32Array, count: number, readOnly: boolean, pages: RequestPages): boolean {
    const batch = this.#batch;
    const persistent = this.#persistent;
    const access = readOnly && !persistent ? 1 : 0;
    const kept = this.#slots;
    const inUse = this.#inUse;
    const { slots, regions, starts } = pages;
    let wanted = 0;
    for (let i = 0; i < count; i++) {
      const reference = references[i]!;
      const slot = persistent ? kept.slotOf(reference) : -1;
      if (slot >= 0 && inUse[slot] === 0) {
        inUse[slot] = 1;
        slots[i] = slot;
        regions[i] = this.#keptRegions[slot];
        starts[i] = this.#keptStarts[slot]!;
        continue;
      }
      slots[i] = -1;
      batch.references[wanted] = reference;
      batch.readOnly[wanted] = access;
      this.#batchIndex[wanted++] = i;
    }
    pages.count = count;
    return wanted === 0 || this.#mapBatch(wanted, pages);
  }

  #mapBatch(wanted: number, pages: RequestPages): boolean {
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
    if (this.#slots.slotOf(reference) >= 0) return -1;
    if (this.#freeCount === 0 && !this.#grow()) {
      this.overflowed = true;
      return -1;
    }
    const slot = this.#freeSlots[--this.#freeCount]!;
    this.#slots.add(reference, slot);
    this.#keptReferences[slot] = reference;
    this.#keptHandles[slot] = batch.handles[k]!;
    this.#keptRegions[slot] = batch.regions[k];
    this.#keptStarts[slot] = batch.starts[k]!;
    this.#inUse[slot] = 1;
    return slot;
  }

  /** Makes more slots. False where there are as many as may be. All are taken. */
  #grow(): boolean {
    const before = this.#slotCount;
    const count = Math.min(Math.max(FIRST_SLOTS, before * 2), this.#capacity);
    if (count === before) return false;
    this.#slotCount = count;
    this.#keptReferences = larger(this.#keptReferences, new Uint32Array(count));
    this.#keptHandles = larger(this.#keptHandles, new Uint32Array(count));
    this.#keptStarts = larger(this.#keptStarts, new Float64Array(count));
    this.#inUse = larger(this.#inUse, new Uint8Array(count));
    this.#used = larger(this.#used, new Uint8Array(count));
    this.#lastUsed = larger(this.#lastUsed, new Float64Array(count));
    this.#purged = larger(this.#purged, new Uint32Array(count));
    while (this.#keptRegions.length < count) this.#keptRegions.push(undefined);
    this.#freeSlots = new Int32Array(count);
    while (this.#freeCount < count - before) {
      this.#freeSlots[this.#freeCount] = count - 1 - this.#freeCount;
      this.#freeCount++;
    }
    return true;
  }

  /** Gives the pages of a request back. */
  unmap(pages: RequestPages): void {
    const { slots, count } = pages;
    const inUse = this.#inUse;
    const used = this.#used;
    const lastUsed = this.#lastUsed;
    const { now } = this;
    for (let i = 0; i < count; i++) {
      const slot = slots[i]!;
      if (slot >= 0) {
        inUse[slot] = 0;
        used[slot] = 1;
        lastUsed[slot] = now;
      } else {
        this.#grants.unmap(pages.handles[i]!);
        this.#lent--;
        pages.regions[i] = undefined;
      }
    }
    pages.count = 0;
  }

  /** Gives up kept pages that are old and, where the cache overflowed, some more: first those that no request used since
   * the last such scan, then others. They stay mapped until `unmapPurged`. Returns how many, and does nothing while
   * earlier ones wait. */
  scan(): number {
    if (this.#purgedCount > 0 || !this.#persistent) return 0;
    this.#purgeWhere((slot) => this.#isOld(slot), Number.POSITIVE_INFINITY);
    if (!this.overflowed) return this.#purgedCount;
    const share = Math.max(1, Math.floor(this.#capacity / 100) * CLEAN_PERCENT);
    this.#purgeWhere((slot) => this.#used[slot] === 0, share);
    this.#purgeWhere(() => true, share);
    this.#used.fill(0);
    // Where every page is in use nothing could be given up, and the next scan tries again.
    if (this.#purgedCount > 0) this.overflowed = false;
    return this.#purgedCount;
  }

  #isOld(slot: number): boolean {
    const limit = this.#unusedMilliseconds;
    return limit > 0 && this.now - this.#lastUsed[slot]! >= limit;
  }

  #purgeWhere(condition: (slot: number) => boolean, share: number): void {
    for (let slot = 0; slot < this.#slotCount && this.#purgedCount < share; slot++) {
      if (this.#keptRegions[slot] === undefined || this.#inUse[slot] === 1) continue;
      if (!condition(slot)) continue;
      this.#purged[this.#purgedCount++] = this.#release(slot);
    }
  }

  /** Frees a slot; returns the handle, which is mapped still. */
  #release(slot: number): number {
    this.#slots.delete(this.#keptReferences[slot]!);
    this.#keptRegions[slot] = undefined;
    this.#used[slot] = 0;
    this.#freeSlots[this.#freeCount++] = slot;
    return this.#keptHandles[slot]!;
  }

  /** Unmaps at most `count` of the pages that were given up. */
  unmapPurged(count: number): void {
    for (let left = Math.min(count, this.#purgedCount); left > 0; left--) {
      this.#grants.unmap(this.#purged[--this.#purgedCount]!);
    }
  }

  /** When a kept page will be old, by `now`; Infinity where none will. Milliseconds. */
  get nextOld(): number {
    if (this.#unusedMilliseconds === 0 || this.kept === 0) return Number.POSITIVE_INFINITY;
    let oldest = Number.POSITIVE_INFINITY;
    for (let slot = 0; slot < this.#slotCount; slot++) {
      if (this.#keptRegions[slot] === undefined) continue;
      oldest = Math.min(oldest, this.#inUse[slot] === 1 ? this.now : this.#lastUsed[slot]!);
    }
    return oldest + this.#unusedMilliseconds;
  }

  /** Unmaps every kept page. No request may be in flight. */
  clear(): void {
    invariant(this.#lent === 0, "a request in flight still maps pages");
    this.unmapPurged(this.#purgedCount);
    for (let slot = 0; slot < this.#slotCount; slot++) {
      if (this.#keptRegions[slot] === undefined) continue;
      invariant(this.#inUse[slot] === 0, "a request in flight still uses a kept page");
      this.#grants.unmap(this.#release(slot));
    }
  }
}

/** The elements of `from` in `to`, which is longer. */
function larger<T extends Uint8Array | Uint32Array | Float64Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
