/** Between the scattered memory of a request and the pages of the pool; whole pages at a time where they touch. */
import type { MemoryRegion, SegmentList } from "../../io/memory.ts";
import { PAGE_SIZE } from "../../xen/domain.ts";

/** Copies `length` bytes that begin at byte `listByte` of the list from (`toPages`: to) the pages of `pool`, which lie
 * from `poolStart` on; a piece begins at the start of its first page. */
export function copyPages(
  toPages: boolean,
  list: SegmentList,
  listByte: number,
  pool: MemoryRegion,
  poolStart: number,
  pages: Uint32Array,
  pageCount: number,
  length: number,
): void {
  let segment = 0;
  let inSegment = listByte;
  while (inSegment >= list.lengths[segment]!) inSegment -= list.lengths[segment++]!;
  let left = length;
  for (let k = 0; k < pageCount && left > 0; ) {
    // A run of pages that follow one another is one piece of memory.
    let run = 1;
    while (k + run < pageCount && pages[k + run] === pages[k]! + run) run++;
    let at = poolStart + pages[k]! * PAGE_SIZE;
    let inRun = Math.min(run * PAGE_SIZE, left);
    left -= inRun;
    k += run;
    while (inRun > 0) {
      const bytes = list.regions[segment]!.bytes;
      const start = list.starts[segment]! + inSegment;
      const piece = Math.min(inRun, list.lengths[segment]! - inSegment);
      if (toPages) pool.bytes.set(bytes.subarray(start, start + piece), at);
      else bytes.set(pool.bytes.subarray(at, at + piece), start);
      at += piece;
      inRun -= piece;
      inSegment += piece;
      if (inSegment === list.lengths[segment]) {
        segment++;
        inSegment = 0;
      }
    }
  }
}
