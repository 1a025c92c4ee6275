/**
 * The pages of a ring's requests in flight: a part of our memory, lent to commands in runs and granted to the
 * backend page by page (xen-blkfront.c: get_grant, gnttab_grant_foreign_access; struct grant).
 *
 * With persistent grants a page stays granted once it was, until it has not been used for a while; else it is granted
 * for one request and the access ended before the page is used again. Invariant: a page that the backend still maps
 * when we want it back is quarantined, never lent again (XSA-396).
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import type { Clock } from "../../util/clock.ts";
import { type Domain, type OwnPages, PAGE_SIZE } from "../../xen/domain.ts";

/** Runs are powers of two up to 2^this pages: the largest request of common limits in one piece. */
const MAX_RUN_ORDER = 5;
/** How often grants that nobody used are ended, where the backend has let go of them: Linux's blkfront_delay_work. */
const PURGE_MILLISECONDS = 10_000;

export interface PagePoolOptions {
  readonly domain: Domain;
  readonly peer: number;
  readonly clock: Clock;
  /** Pages; fewer where the domain has no more, but not fewer than `minimum`. */
  readonly wanted: number;
  readonly minimum: number;
  /** The backend keeps pages mapped: for reading and writing, whatever a request does with them. */
  readonly persistent: boolean;
  /** Pages stay granted between requests, also where the backend unmaps them; as `persistent` if absent. */
  readonly keep?: boolean;
}

export class PagePool implements Disposable {
  readonly region: MemoryRegion;
  readonly #pages: OwnPages;
  readonly #peer: number;
  readonly #clock: Clock;
  readonly #persistent: boolean;
  readonly #keep: boolean;
  /** Free runs by order, as stacks of first pages: the last one used is the first used again. */
  readonly #free: Int32Array[] = [];
  readonly #freeCount: Int32Array;
  /** Order of the run that begins at a page, for giving it back. */
  readonly #orders: Uint8Array;
  readonly #isFree: Uint8Array;
  /** Pages that were used since the last purge. */
  readonly #used: Uint8Array;
  #available: number;
  #quarantined = 0;
  #purge: Disposable | undefined = undefined;

  /** undefined when the domain has no room for even `minimum` pages. */
  static create(options: PagePoolOptions): PagePool | undefined {
    const unit = 1 << MAX_RUN_ORDER;
    const { wanted, minimum, domain } = options;
    for (let count = Math.ceil(wanted / unit) * unit; count > 0 && count >= minimum; ) {
      const pages = domain.grants.allocate(count);
      if (pages !== undefined) return new PagePool(pages, options);
      count -= unit;
    }
    return undefined;
  }

  private constructor(pages: OwnPages, options: PagePoolOptions) {
    const alwaysGranted = !options.domain.grants.grantsPages;
    this.#pages = pages;
    this.#peer = options.peer;
    this.#clock = options.clock;
    this.#persistent = options.persistent || alwaysGranted;
    this.#keep = (options.keep ?? options.persistent) || alwaysGranted;
    this.#used = new Uint8Array(pages.count);
    this.region = pages.region;
    this.#orders = new Uint8Array(pages.count);
    this.#isFree = new Uint8Array(pages.count);
    this.#freeCount = new Int32Array(MAX_RUN_ORDER + 1);
    for (let order = 0; order <= MAX_RUN_ORDER; order++) {
      this.#free.push(new Int32Array((pages.count >> order) + 1));
    }
    this.#available = 0;
    for (let page = pages.count - (1 << MAX_RUN_ORDER); page >= 0; page -= 1 << MAX_RUN_ORDER) {
      this.#put(page, MAX_RUN_ORDER);
    }
  }

  /** Pages that can be lent now. */
  get available(): number {
    return this.#available;
  }

  get count(): number {
    return this.#pages.count;
  }

  /** Pages given up because the backend kept them mapped. */
  get quarantined(): number {
    return this.#quarantined;
  }

  /** Byte of a page in `region`. */
  start(page: number): number {
    return this.#pages.start + page * PAGE_SIZE;
  }

  #put(page: number, order: number): void {
    this.#orders[page] = order;
    this.#isFree[page] = 1;
    this.#free[order]![this.#freeCount[order]!] = page;
    this.#freeCount[order] = this.#freeCount[order]! + 1;
    this.#available += 1 << order;
  }

  #pop(order: number): number {
    const index = this.#freeCount[order]! - 1;
    this.#freeCount[order] = index;
    const page = this.#free[order]![index]!;
    this.#isFree[page] = 0;
    this.#available -= 1 << order;
    return page;
  }

  /** First page of a run of 2^order pages, or -1 where none is in one piece. */
  #takeRun(order: number): number {
    for (let larger = order; larger <= MAX_RUN_ORDER; larger++) {
      if (this.#freeCount[larger] === 0) continue;
      const page = this.#pop(larger);
      // The upper halves go back; what is left is the run.
      for (let half = larger - 1; half >= order; half--) this.#put(page + (1 << half), half);
      this.#orders[page] = order;
      return page;
    }
    return -1;
  }

  /** Joins free neighbours again. Rare: only when no run is long enough. */
  #join(): void {
    for (let order = 0; order < MAX_RUN_ORDER; order++) {
      const stack = this.#free[order]!;
      const count = this.#freeCount[order]!;
      let kept = 0;
      for (let i = 0; i < count; i++) {
        const page = stack[i]!;
        if (this.#isFree[page] === 0 || this.#orders[page] !== order) continue;
        const buddy = page ^ (1 << order);
        if (
          buddy + (1 << order) <= this.#pages.count &&
          this.#isFree[buddy] === 1 &&
          this.#orders[buddy] === order
        ) {
          this.#isFree[page] = 0;
          this.#isFree[buddy] = 0;
          this.#available -= 2 << order;
          this.#put(Math.min(page, buddy), order + 1);
        } else stack[kept++] = page;
      }
      // Buddies that were kept before their partner came along are no longer free at this order.
      let valid = 0;
      for (let i = 0; i < kept; i++) {
        const page = stack[i]!;
        if (this.#isFree[page] === 1 && this.#orders[page] === order) stack[valid++] = page;
      }
      this.#freeCount[order] = valid;
    }
  }

  /** Lends `count` pages, in as few runs as there are; false, with nothing lent, when fewer are available. */
  take(count: number, into: Uint32Array): boolean {
    if (count > this.#available) return false;
    let taken = 0;
    let joined = false;
    while (taken < count) {
      let order = Math.min(MAX_RUN_ORDER, 31 - Math.clz32(count - taken));
      let page = this.#takeRun(order);
      if (page < 0 && !joined && order > 0) {
        joined = true;
        this.#join();
        page = this.#takeRun(order);
      }
      while (page < 0) {
        invariant(order > 0, "available pages that no run holds");
        page = this.#takeRun(--order);
      }
      for (let i = 0; i < 1 << order; i++) into[taken++] = page + i;
    }
    return true;
  }

  /** Takes back what `take` lent with the same list. */
  give(pages: Uint32Array, count: number): void {
    for (let i = 0; i < count; ) {
      const page = pages[i]!;
      const order = this.#orders[page]!;
      if (this.#endAccess(page, 1 << order)) this.#put(page, order);
      else this.#quarantined += 1 << order;
      i += 1 << order;
    }
  }

  /** True when none of the pages is granted any more, or all may stay so. */
  #endAccess(first: number, count: number): boolean {
    if (this.#keep) return true;
    let ended = true;
    for (let page = first; page < first + count; page++) {
      if (this.#pages.references[page] !== 0) ended = this.#pages.endAccess(page) && ended;
    }
    return ended;
  }

  /** Grant reference of a lent page, granted now if it is not; 0 when no grant entry is free. */
  reference(page: number, readOnly: boolean): number {
    this.#used[page] = 1;
    const reference = this.#pages.references[page]!;
    if (reference !== 0) return reference;
    if (!this.#pages.grant(page, this.#peer, readOnly && !this.#persistent)) return 0;
    if (this.#keep && this.#purge === undefined) this.#armPurge();
    return this.#pages.references[page]!;
  }

  #armPurge(): void {
    this.#purge = this.#clock.after(PURGE_MILLISECONDS, () => {
      this.#purge = undefined;
      if (this.purge() > 0) this.#armPurge();
    });
  }

  /** Ends the access to pages that nobody has used since the last purge and the backend does not map. Says how many
   * stay granted. */
  purge(): number {
    let granted = 0;
    for (let page = 0; page < this.count; ) {
      const count = 1 << this.#orders[page]!;
      const free = this.#isFree[page] === 1;
      for (const end = page + count; page < end; page++) {
        if (this.#pages.references[page] === 0) continue;
        const idle = free && this.#used[page] === 0;
        this.#used[page] = 0;
        if (!idle || !this.#pages.endAccess(page)) granted++;
      }
    }
    return granted;
  }

  /** Ends every grant that can be ended, and gives the memory back. */
  [Symbol.dispose](): void {
    this.#purge?.[Symbol.dispose]();
    this.#pages[Symbol.dispose]();
  }
}
