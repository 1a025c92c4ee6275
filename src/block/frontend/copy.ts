/** Between the scattered memory of a request and the pages of the pool; whole pages at a time where they touch. */
import type { MemoryRegion, SegmentList } from "../../io/memory.ts";
import { copyFromSegments, copyToSegments } from "../../store/segments.ts";
import { PAGE_SIZE } from "../../xen/domain.ts";

/** Copies `length` bytes that begin at byte `listByte` of the list from (`toPages`: to) the pages of `pool`, which lie
 * from `poolStart` on; in the pages they begin at byte `pagesByte` of all `pages` in turn. */
export function copyPages(
  toPages: boolean,
  list: SegmentList,
  listByte: number,
  pool: MemoryRegion,
  poolStart: number,
  pages: Uint32Array,
  pagesByte: number,
  length: number,
): void {
  const end = Math.ceil((pagesByte + length) / PAGE_SIZE);
  let page = Math.floor(pagesByte / PAGE_SIZE);
  let inPage = pagesByte % PAGE_SIZE;
  for (let left = length; left > 0; ) {
    // A run of pages that follow one another is one piece of memory.
    let run = 1;
    while (page + run < end && pages[page + run] === pages[page]! + run) run++;
    const at = poolStart + pages[page]! * PAGE_SIZE + inPage;
    const piece = Math.min(run * PAGE_SIZE - inPage, left);
    if (toPages) copyFromSegments(list, listByte, pool.bytes, at, piece);
    else copyToSegments(pool.bytes, at, list, listByte, piece);
    listByte += piece;
    left -= piece;
    page += run;
    inPage = 0;
  }
}
