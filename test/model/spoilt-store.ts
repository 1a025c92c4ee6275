/** A disk with bad sectors: reads and writes that touch them fail with EIO and do nothing; all others are done. */
import type { BlockRequest } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import { ForwardingStore, operationNames } from "../../src/store/forwarding-store.ts";
import { type Range, SECTOR } from "./ring-arbitraries.ts";

export class SpoiltStore extends ForwardingStore {
  bad: Range | undefined;

  override submit(request: BlockRequest): void {
    const name = operationNames[request.operation]!;
    const carries = name === "read" || name === "write";
    if (carries && overlaps(this.bad, request.offset, request.length)) {
      this.answer(request, Errno.EIO);
    } else this.next.submit(request);
  }
}

/** Whether bytes lie in the range; in none, where that is undefined. */
export function overlaps(range: Range | undefined, offset: number, length: number): boolean {
  if (range === undefined) return false;
  const start = range.sector * SECTOR;
  return offset < start + range.count * SECTOR && start < offset + length;
}
