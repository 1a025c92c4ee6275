/**
 * The granting half of a grant table: the domain's own pages and its own v1 entries, as gnttab_grant_foreign_access
 * and gnttab_end_foreign_access of a guest use them.
 *
 * Invariants: an entry is changed only by an atomic operation; a page whose entry says that it is in use never goes
 * back to the free pages (XSA-396); free + granted + quarantined entries are all there are.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { type OwnPages, PAGE_SIZE } from "../domain.ts";
import type { MutableCounters } from "../grant-counters.ts";
import type { DomainMemory } from "./domain-memory.ts";
import {
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_writing,
  isDomid,
  RESERVED_GRANT_ENTRIES,
  UNSTABLE_ENTRY_TRIES,
} from "./layout.ts";

const IN_USE = GTF_reading | GTF_writing;

const PageState = { fresh: 0, free: 1, used: 2, quarantined: 3 } as const;

interface Waiter {
  readonly count: number;
  readonly callback: () => void;
}

export class OwnGrants {
  readonly #memory: DomainMemory;
  readonly #counters: MutableCounters;
  readonly #freed: () => void;
  /** A stack of the free references. */
  readonly #free: Uint32Array;
  #freeCount: number;
  /** PageState of each ordinary page, from the first. */
  readonly #pages: Uint8Array;
  /** No page before it can be had, so that many runs are found in one pass. */
  #lowest = 0;
  #waiters: Waiter[] = [];

  /** `freed` is called when someone who waits for entries can be served: call `serveWaiters` soon. */
  constructor(memory: DomainMemory, counters: MutableCounters, freed: () => void) {
    const { grantEntries, pageCount, firstFrame } = memory.shape;
    this.#memory = memory;
    this.#counters = counters;
    this.#freed = freed;
    this.#freeCount = grantEntries - RESERVED_GRANT_ENTRIES;
    this.#free = new Uint32Array(this.#freeCount);
    for (let i = 0; i < this.#freeCount; i++) this.#free[i] = grantEntries - 1 - i;
    this.#pages = new Uint8Array(pageCount - firstFrame);
    // What the domain's builder has granted for it is not free.
    for (let reference = 0; reference < RESERVED_GRANT_ENTRIES; reference++) {
      const granted = memory.grantWords[reference * 2]! & GTF_permit_access;
      const page = memory.grantWords[reference * 2 + 1]! - firstFrame;
      if (granted !== 0 && page >= 0 && page < this.#pages.length) {
        this.#pages[page] = PageState.used;
      }
    }
  }

  get freeEntries(): number {
    return this.#freeCount;
  }

  /** Pages that `allocate` could still give, though not side by side. */
  get freePages(): number {
    let count = 0;
    for (const state of this.#pages) if (state <= PageState.free) count++;
    return count;
  }

  allocate(pageCount: number): OwnPages | undefined {
    invariant(Number.isInteger(pageCount) && pageCount > 0, "pages are allocated by whole numbers");
    const first = this.#findRun(pageCount);
    if (first < 0) return undefined;
    const start = (this.#memory.shape.firstFrame + first) * PAGE_SIZE;
    for (let i = 0; i < pageCount; i++) {
      // A fresh page reads as zeros already and is left untouched, so that it costs no memory before its use.
      if (this.#pages[first + i] === PageState.free) {
        this.#memory.bytes.fill(0, start + i * PAGE_SIZE, start + (i + 1) * PAGE_SIZE);
      }
      this.#pages[first + i] = PageState.used;
    }
    return new EmbeddedPages(this, this.#memory, start, pageCount);
  }

  /** First fit. */
  #findRun(pageCount: number): number {
    let run = 0;
    while (this.#pages[this.#lowest]! > PageState.free) this.#lowest++;
    for (let page = this.#lowest; page < this.#pages.length; page++) {
      run = this.#pages[page]! <= PageState.free ? run + 1 : 0;
      if (run === pageCount) return page + 1 - pageCount;
    }
    return -1;
  }

  /** The reference of the new grant, `wanted` where that is not 0; 0 when no entry is free, or that one is not. */
  grant(start: number, peer: number, readOnly: boolean, wanted: number = 0): number {
    if (this.#freeCount === 0) return 0;
    if (wanted !== 0) {
      const index = this.#free.lastIndexOf(wanted, this.#freeCount - 1);
      if (index < 0) return 0;
      this.#free[index] = this.#free[this.#freeCount - 1]!;
      this.#free[this.#freeCount - 1] = wanted;
    }
    const reference = this.#free[--this.#freeCount]!;
    const words = this.#memory.grantWords;
    Atomics.store(words, reference * 2 + 1, start / PAGE_SIZE);
    const flags = GTF_permit_access | (readOnly ? GTF_readonly : 0);
    Atomics.store(words, reference * 2, ((peer << 16) | flags) >>> 0);
    this.#counters.granted++;
    return reference;
  }

  /** False while the entry is in use; it then stays as it is. */
  endAccess(reference: number): boolean {
    const words = this.#memory.grantWords;
    for (let tries = 0; tries < UNSTABLE_ENTRY_TRIES; tries++) {
      const word = Atomics.load(words, reference * 2);
      if ((word & IN_USE) !== 0) return false;
      if (Atomics.compareExchange(words, reference * 2, word, 0) !== word) continue;
      this.#free[this.#freeCount++] = reference;
      this.#counters.granted--;
      if (this.#waiters.some(({ count }) => count <= this.#freeCount)) this.#freed();
      return true;
    }
    return false;
  }

  /** Takes pages back; `references` are those of pages whose access could not be ended. */
  giveBack(start: number, references: Uint32Array): void {
    const first = start / PAGE_SIZE - this.#memory.shape.firstFrame;
    this.#lowest = Math.min(this.#lowest, first);
    references.forEach((reference, i) => {
      invariant(this.#pages[first + i] === PageState.used, "a page is given back twice");
      this.#pages[first + i] = reference === 0 ? PageState.free : PageState.quarantined;
      if (reference === 0) return;
      this.#counters.granted--;
      this.#counters.quarantined++;
    });
  }

  whenFree(count: number, callback: () => void): Disposable {
    invariant(count <= this.#free.length, "more grant entries are awaited than there are");
    const waiter: Waiter = { count, callback };
    this.#waiters.push(waiter);
    if (count <= this.#freeCount) this.#freed();
    return { [Symbol.dispose]: () => this.#forget(waiter) };
  }

  #forget(waiter: Waiter): void {
    this.#waiters = this.#waiters.filter((other) => other !== waiter);
  }

  /** Calls back those whose entries are free, in the order they came. */
  serveWaiters(): void {
    for (const waiter of this.#waiters) {
      // An earlier callback may have taken the entries or forgotten this waiter.
      if (waiter.count > this.#freeCount || !this.#waiters.includes(waiter)) continue;
      this.#forget(waiter);
      waiter.callback();
    }
  }
}

class EmbeddedPages implements OwnPages {
  readonly region: MemoryRegion;
  readonly start: number;
  readonly count: number;
  readonly references: Uint32Array;
  readonly #grants: OwnGrants;
  /** Held, so that pages which outlive their domain (a request in flight) are not unmapped below their user. */
  readonly #memory: DomainMemory;
  #disposed = false;

  constructor(grants: OwnGrants, memory: DomainMemory, start: number, count: number) {
    this.#grants = grants;
    this.#memory = memory.retain();
    this.region = memory.region;
    this.start = start;
    this.count = count;
    this.references = new Uint32Array(count);
  }

  grant(index: number, peer: number, readOnly: boolean, wanted?: number): boolean {
    invariant(!this.#disposed && index < this.count, "a page is granted that is not there");
    invariant(this.references[index] === 0, "a page is granted twice");
    invariant(isDomid(peer), "a page is granted to a number that is no domain's");
    const reference = this.#grants.grant(this.start + index * PAGE_SIZE, peer, readOnly, wanted);
    this.references[index] = reference;
    return reference !== 0;
  }

  endAccess(index: number): boolean {
    const reference = this.references[index]!;
    if (reference === 0) return true;
    if (!this.#grants.endAccess(reference)) return false;
    this.references[index] = 0;
    return true;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (let i = 0; i < this.count; i++) this.endAccess(i);
    this.#grants.giveBack(this.start, this.references);
    this.#memory.release();
  }
}
