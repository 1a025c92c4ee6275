/**
 * Which of the requests that wait one command carries: what Linux's block layer merges before blkfront sees it, and
 * FreeBSD does not.
 *
 * Invariant: a run is made of whole requests that waited one behind the other and go on, on the disk, where the one
 * before ends. So nothing is overtaken, nothing overlaps, and nothing waits for a run to become longer.
 */
import type { BlockRequest } from "../../store/block-store.ts";
import { ALONE, BARRIER, complete, ORDERED } from "./completion.ts";

/** The last of the run of reads or writes that begins with `first` and has room in `room` bytes. The first has. */
export function lastOfRun(first: BlockRequest, room: number): BlockRequest {
  let last = first;
  if ((first.flags & (ORDERED | BARRIER | ALONE)) !== 0) return last;
  const end = first.offset + room;
  for (let next = first.next; next !== undefined; next = next.next) {
    if (!goesOn(last, next) || next.offset + next.length > end) break;
    last = next;
  }
  return last;
}

/** Whether a request does the same as the one before, next to it. */
function goesOn(before: BlockRequest, request: BlockRequest): boolean {
  return (
    request.offset === before.offset + before.length &&
    request.length > 0 &&
    request.operation === before.operation &&
    request.flags === before.flags
  );
}

/** Completes the requests of a run, which are linked. Each may be submitted again at once, and then has another link. */
export function completeRun(first: BlockRequest, errno: number): void {
  for (let request: BlockRequest | undefined = first; request !== undefined; ) {
    const { next }: BlockRequest = request;
    request.childrenLeft = 0;
    complete(request, errno);
    request = next;
  }
}
