/**
 * Memory of the disk's users that lies in pages of the domain: the backend is granted the very pages in which they keep
 * their data, and nothing is copied (as a kernel does with every page, where grants are not persistent).
 *
 * Pages stay granted for as long as the connection lasts, as those of the page pool do where grants are persistent.
 * Invariant: a page that a backend may still map is lent to users of the same disk alone, so memory that one gives back
 * waits here for the next; it is the domain's again when the disk has closed.
 */
import { MemoryRegion, type SegmentList } from "../../io/memory.ts";
import { type Domain, type GrantTable, type OwnPages, PAGE_SIZE } from "../../xen/domain.ts";

/** Pages of one disk: an NBD server's and a Disk's. */
const MAX_PAGES = 2048;
/** Of the domain's pages that are free, this part may go to one user: rings and pools of other disks need some, too. */
const SHARE = 4;
/** Grant entries that are left to page pools and rings of all disks, which cannot go on without: two full pools. Data in a
 * page that gets none is copied. */
const SPARED_ENTRIES = 2048;

export class ClientMemory implements Disposable {
  readonly #domain: Domain;
  /** By region id: a look-up for each segment. */
  readonly #lent: (Loan | undefined)[] = [];
  readonly #kept: Loan[] = [];
  #pages = 0;
  #peer = -1;
  #ended = false;

  constructor(domain: Domain) {
    this.#domain = domain;
  }

  /** Zeroed memory, given back by its disposal; undefined where there is none left to lend, or where pages of the domain
   * are too few (a host's are). */
  allocate(byteLength: number): MemoryRegion | undefined {
    const { grants } = this.#domain;
    if (this.#ended || !grants.grantsPages) return undefined;
    const count = Math.ceil(byteLength / PAGE_SIZE);
    const index = this.#kept.findIndex(({ pages }) => pages.count === count);
    if (index >= 0) return this.#lend(this.#kept.splice(index, 1)[0]!, byteLength);
    if (count === 0 || this.#pages + count > MAX_PAGES) return undefined;
    if (count > grants.freePages / SHARE) return undefined;
    const pages = grants.allocate(count);
    if (pages === undefined) return undefined;
    this.#pages += count;
    return this.#lend(new Loan(pages), byteLength);
  }

  #lend(loan: Loan, byteLength: number): MemoryRegion {
    const { region, start } = loan.pages;
    const bytes = region.bytes.subarray(start, start + byteLength);
    const address = region.address === 0 ? 0 : region.address + start;
    const lent = new MemoryRegion(bytes, address, () => this.#takeBack(loan));
    loan.region = lent;
    this.#lent[lent.id] = loan;
    return lent;
  }

  #takeBack(loan: Loan): void {
    this.#lent[loan.region!.id] = undefined;
    loan.region = undefined;
    if (this.#ended) {
      loan.pages[Symbol.dispose]();
      return;
    }
    const { region, start, count } = loan.pages;
    region.bytes.fill(0, start, start + count * PAGE_SIZE);
    this.#kept.push(loan);
  }

  /** The pages are for this backend from now on: the one before loses every page that it has let go of. What it still maps
   * stays closed to this one. */
  beginFor(peer: number): void {
    this.#endAccess();
    this.#peer = peer;
  }

  #endAccess(): void {
    for (const loan of this.#lent) loan?.endAccess();
    for (const loan of this.#kept) loan.endAccess();
  }

  /** Lists the references of the pages that hold `length` bytes of the list from byte `from` on, whole pages but for the
   * last. Returns the new count; -1 where the data lies elsewhere or otherwise, or cannot be granted. */
  list(
    segments: SegmentList,
    from: number,
    length: number,
    references: Uint32Array,
    count: number,
  ): number {
    let left = length;
    for (let i = 0; i < segments.count && left > 0; i++) {
      const available = segments.lengths[i]!;
      if (from >= available) {
        from -= available;
        continue;
      }
      const region = segments.regions[i]!;
      const loan = this.#lent[region.id];
      const start = segments.starts[i]! + from;
      const bytes = Math.min(available - from, left);
      from = 0;
      left -= bytes;
      if (loan === undefined || loan.region !== region || start % PAGE_SIZE !== 0) return -1;
      if (left > 0 && bytes % PAGE_SIZE !== 0) return -1;
      const end = (start + bytes) / PAGE_SIZE;
      for (let page = start / PAGE_SIZE; page < end; page++) {
        const reference = loan.reference(page, this.#peer, this.#domain.grants);
        if (reference === 0) return -1;
        references[count++] = reference;
      }
    }
    return count;
  }

  /** The disk has closed: pages are the domain's again, those in use when their user gives them back. */
  [Symbol.dispose](): void {
    this.#ended = true;
    this.#endAccess();
    for (const { pages } of this.#kept.splice(0)) pages[Symbol.dispose]();
  }
}

/** A run of pages, with their user's region while they have one. */
class Loan {
  readonly pages: OwnPages;
  region: MemoryRegion | undefined = undefined;
  /** Whom each page that has a reference is granted to. */
  readonly #peers: Uint16Array;

  constructor(pages: OwnPages) {
    this.pages = pages;
    this.#peers = new Uint16Array(pages.count);
  }

  /** Grant reference of a page, granted now if it is not; 0 where it cannot be. */
  reference(page: number, peer: number, grants: GrantTable): number {
    const { references } = this.pages;
    const reference = references[page]!;
    if (reference !== 0) return this.#peers[page] === peer ? reference : 0;
    if (grants.freeEntries <= SPARED_ENTRIES || !this.pages.grant(page, peer, false)) return 0;
    this.#peers[page] = peer;
    return references[page]!;
  }

  endAccess(): void {
    for (let page = 0; page < this.pages.count; page++) this.pages.endAccess(page);
  }
}
