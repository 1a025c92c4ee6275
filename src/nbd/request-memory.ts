/** The memory of a storage request, byte by byte of its data: where replies are put. */
import type { MemoryRegion } from "../io/memory.ts";
import type { BlockRequest } from "../store/block-store.ts";

/** A run of memory; one object is filled again and again. */
export interface Span {
  region: MemoryRegion | undefined;
  start: number;
  length: number;
}

/** The longest run of memory from byte `position` of the request's data on, of at most `limit` bytes. */
export function spanOf(request: BlockRequest, position: number, limit: number, span: Span): void {
  const list = request.segments!;
  let skip = request.segmentByte + position;
  for (let i = 0; i < list.count; i++) {
    const length = list.lengths[i]!;
    if (skip < length) {
      span.region = list.regions[i];
      span.start = list.starts[i]! + skip;
      span.length = Math.min(length - skip, limit);
      return;
    }
    skip -= length;
  }
  span.length = 0;
}

const scratch: Span = { region: undefined, start: 0, length: 0 };

/** Copies `count` bytes to the request's data from byte `position` on. */
export function copyToRequest(
  request: BlockRequest,
  position: number,
  bytes: Uint8Array,
  from: number,
  count: number,
): void {
  while (count > 0) {
    spanOf(request, position, count, scratch);
    const { length } = scratch;
    if (length === 0) return;
    scratch.region!.bytes.set(bytes.subarray(from, from + length), scratch.start);
    position += length;
    from += length;
    count -= length;
  }
}

export function zeroRequest(request: BlockRequest, position: number, count: number): void {
  while (count > 0) {
    spanOf(request, position, count, scratch);
    const { length } = scratch;
    if (length === 0) return;
    scratch.region!.bytes.fill(0, scratch.start, scratch.start + length);
    position += length;
    count -= length;
  }
}
