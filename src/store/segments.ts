/**
 * Bytes in and out of the scattered memory of a request. Whoever keeps bytes of its own (memory, a pool, a bounce
 * buffer) copies through here.
 *
 * Invariant: nothing is allocated.
 */
import type { SegmentList } from "../io/memory.ts";
import { invariant } from "../util/assert.ts";
import { copyBytes } from "../util/copy-bytes.ts";

/** Bytes. Copying zeroes is faster than filling memory that other threads share. */
const ZEROES = new Uint8Array(64 * 1024);

export function zeroBytes(target: Uint8Array, start: number, length: number): void {
  for (let done = 0; done < length; done += ZEROES.length) {
    copyBytes(ZEROES, 0, target, start + done, Math.min(ZEROES.length, length - done));
  }
}

/** Copies `length` bytes of `source` to the list, from its byte `listByte` on. */
export function copyToSegments(
  source: Uint8Array,
  sourceStart: number,
  list: SegmentList,
  listByte: number,
  length: number,
): void {
  let segment = 0;
  for (; segment < list.count && listByte >= list.lengths[segment]!; segment++) {
    listByte -= list.lengths[segment]!;
  }
  while (length > 0) {
    invariant(segment < list.count, "a request is longer than its segments");
    const piece = Math.min(length, list.lengths[segment]! - listByte);
    const start = list.starts[segment]! + listByte;
    copyBytes(source, sourceStart, list.regions[segment]!.bytes, start, piece);
    sourceStart += piece;
    length -= piece;
    listByte = 0;
    segment++;
  }
}

/** Copies `length` bytes of the list, from its byte `listByte` on, to `target`. */
export function copyFromSegments(
  list: SegmentList,
  listByte: number,
  target: Uint8Array,
  targetStart: number,
  length: number,
): void {
  let segment = 0;
  for (; segment < list.count && listByte >= list.lengths[segment]!; segment++) {
    listByte -= list.lengths[segment]!;
  }
  while (length > 0) {
    invariant(segment < list.count, "a request is longer than its segments");
    const piece = Math.min(length, list.lengths[segment]! - listByte);
    const start = list.starts[segment]! + listByte;
    copyBytes(list.regions[segment]!.bytes, start, target, targetStart, piece);
    targetStart += piece;
    length -= piece;
    listByte = 0;
    segment++;
  }
}

/** Zeroes `length` bytes of the list, from its byte `listByte` on. */
export function zeroSegments(list: SegmentList, listByte: number, length: number): void {
  while (length > 0) {
    const piece = Math.min(length, ZEROES.length);
    copyToSegments(ZEROES, 0, list, listByte, piece);
    listByte += piece;
    length -= piece;
  }
}
