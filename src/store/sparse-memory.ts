/**
 * Bytes that take memory only where something was written: pages in a directory of two levels.
 *
 * Invariant: a page that is absent reads as zeroes.
 */
import { zeroBytes } from "./segments.ts";

/** Bytes; as nbdkit's sparse allocator. */
export const SPARSE_PAGE_SIZE: number = 32 * 1024;
/** Pages to a directory entry, so that a directory covers 128 MiB. */
const PAGES_PER_TABLE = 4096;

export class SparseMemory {
  readonly #tables = new Map<number, (Uint8Array | undefined)[]>();
  #lastIndex = -1;
  #lastTable: (Uint8Array | undefined)[] | undefined = undefined;

  /** The page that holds byte `offset`, if there is one. */
  page(offset: number): Uint8Array | undefined {
    const page = Math.floor(offset / SPARSE_PAGE_SIZE);
    return this.#table(Math.floor(page / PAGES_PER_TABLE))?.[page % PAGES_PER_TABLE];
  }

  /** The page that holds byte `offset`, zeroed where it is new. Throws RangeError where there is no more memory. */
  makePage(offset: number): Uint8Array {
    const page = Math.floor(offset / SPARSE_PAGE_SIZE);
    const index = Math.floor(page / PAGES_PER_TABLE);
    let table = this.#table(index);
    if (table === undefined) {
      table = new Array<Uint8Array | undefined>(PAGES_PER_TABLE).fill(undefined);
      this.#tables.set(index, table);
      this.#lastTable = table;
    }
    let bytes = table[page % PAGES_PER_TABLE];
    if (bytes === undefined) {
      bytes = new Uint8Array(SPARSE_PAGE_SIZE);
      table[page % PAGES_PER_TABLE] = bytes;
    }
    return bytes;
  }

  /** Makes a range read as zeroes, and gives back its whole pages. `end` is exclusive. */
  zero(offset: number, end: number): void {
    while (offset < end) {
      const inPage = offset % SPARSE_PAGE_SIZE;
      const index = Math.floor(offset / SPARSE_PAGE_SIZE / PAGES_PER_TABLE);
      const table = this.#table(index);
      if (table === undefined) {
        offset = (index + 1) * PAGES_PER_TABLE * SPARSE_PAGE_SIZE;
        continue;
      }
      const piece = Math.min(end - offset, SPARSE_PAGE_SIZE - inPage);
      const slot = Math.floor(offset / SPARSE_PAGE_SIZE) % PAGES_PER_TABLE;
      if (piece === SPARSE_PAGE_SIZE) table[slot] = undefined;
      else if (table[slot] !== undefined) zeroBytes(table[slot], inPage, piece);
      offset += piece;
    }
  }

  /** Where the run of the state of `offset` (a page or none) ends, no further than `end`. */
  runEnd(offset: number, end: number): number {
    const present = this.page(offset) !== undefined;
    let at = offset - (offset % SPARSE_PAGE_SIZE) + SPARSE_PAGE_SIZE;
    while (at < end) {
      const index = Math.floor(at / SPARSE_PAGE_SIZE / PAGES_PER_TABLE);
      if (this.#table(index) === undefined) {
        if (present) break;
        at = (index + 1) * PAGES_PER_TABLE * SPARSE_PAGE_SIZE;
        continue;
      }
      if ((this.page(at) !== undefined) !== present) break;
      at += SPARSE_PAGE_SIZE;
    }
    return Math.min(at, end);
  }

  clear(): void {
    this.#tables.clear();
    this.#lastIndex = -1;
    this.#lastTable = undefined;
  }

  #table(index: number): (Uint8Array | undefined)[] | undefined {
    if (index !== this.#lastIndex) {
      this.#lastIndex = index;
      this.#lastTable = this.#tables.get(index);
    }
    return this.#lastTable;
  }
}
