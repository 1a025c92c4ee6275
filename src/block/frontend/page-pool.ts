/**
 * The pages of a frontend's requests in flight: a part of our memory, lent to commands in runs and granted to the
 * backend page by page (xen-blkfront.c: get_grant, gnttab_grant_foreign_access; struct grant).
 *
 * With persistent grants a page stays granted once it was; else it is granted for one request and the access ended
 * before the page is used again. Invariant: a page that the backend still maps when we want it back is quarantined,
 * never lent again (XSA-396).
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { type Domain, type OwnPages, PAGE_SIZE } from "../../xen/domain.ts";

/** Runs are powers of two up to 2^this pages: the largest request of common limits in one piece. */
const MAX_RUN_ORDER = 5;

export class PagePool implements Disposable {
  readonly region: MemoryRegion;
  readonly #pages: OwnPages;
  readonly #peer: number;
  readonly #persistent: boolean;
  /** Free runs by order, as stacks of first pages: the last one used is the first used again. */
  readonly #free: Int32Array[] = [];
  readonly #freeCount: Int32Array;
  /** Order of the run that begins at a page, for giving it back. */
  readonly #orders: Uint8Array;
  readonly #isFree: Uint8Array;
  #available: number;
  #quarantined = 0;

  /** undefined when the domain has no room for even `minimum` pages. */
  static create(
    domain: Domain,
    peer: number,
    wanted: number,
    minimum: number,
    persistent: boolean,
  ): PagePool | undefined {
    const unit = 1 << MAX_RUN_ORDER;
    for (let count = Math.ceil(wanted / unit) * unit; count >= minimum; count -= unit) {
      const pages = domain.grants.allocate(count);
      if (pages !== undefined) {
        return new PagePool(pages, peer, persistent || !domain.grants.grantsPages);
      }
    }
    return undefined;
  }

  private constructor(pages: OwnPages, peer: number, persistent: boolean) {
    this.#pages = pages;
    this.#peer = peer;
    this.#persistent = persistent;
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
    if (this.#persistent) return true;
    let ended = true;
    for (let page = first; page < first + count; page++) {
      if (this.#pages.references[page] !== 0) ended = this.#pages.endAccess(page) && ended;
    }
    return ended;
  }

  /** Grant reference of a lent page, granted now if it is not; 0 when no grant entry is free. */
  reference(page: number, readOnly: boolean): number {
    const reference = this.#pages.references[page]!;
    if (reference !== 0) return reference;
    const granted = this.#pages.grant(page, this.#peer, readOnly && !this.#persistent);
    return granted ? this.#pages.references[page]! : 0;
  }

  /** Ends every grant that can be ended, and gives the memory back. */
  [Symbol.dispose](): void {
    this.#pages[Symbol.dispose]();
  }
}
