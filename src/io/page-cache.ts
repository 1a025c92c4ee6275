/**
 * Reads that the page cache can answer at once: preadv2(2) with RWF_NOWAIT, cheaper than a round through a ring for
 * a few small reads, and far cheaper than one through libuv's threads.
 */
import { EAGAIN, type IoFile, type IoRequest } from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import type { VectorTable } from "./vector-table.ts";

const RWF_NOWAIT = 8;
/** Bytes. Beyond it copying dominates, and it would block the loop for longer than a ring's bookkeeping costs. */
const LONGEST_READ = 65536;
/** Reads that go straight to the disk after one was not in the cache: a cold file pays 1/32 of a call per read. */
const READS_AFTER_MISS = 32;

/** Reads what it can. Returns the bytes read, 0 where none were cached or trying was not worth it. Uses the slot's
 * vectors, which are free again on return. */
export function readCached(
  calls: Ffi,
  file: IoFile,
  request: IoRequest,
  vectors: VectorTable,
  slot: number,
): number {
  if (!file.cached || request.length > LONGEST_READ) return 0;
  if (file.missesLeft > 0) {
    file.missesLeft--;
    return 0;
  }
  vectors.fill(slot, request.segments!, request.segmentByte, request.length);
  const { descriptor } = file;
  const table = vectors.addressOf(slot);
  const read = calls.preadv2(descriptor, table, vectors.count, request.offset, RWF_NOWAIT);
  if (read > 0) return read;
  if (read < 0 && calls.errno() === EAGAIN) file.missesLeft = READS_AFTER_MISS;
  // Another error (EOPNOTSUPP, say) will be met again by the read proper, where it counts.
  else file.cached = false;
  return 0;
}
