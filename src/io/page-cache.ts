/**
 * What memory does at once, in the kick: reads that the page cache can answer, and writes, which it nearly always takes.
 * For a few requests that is cheaper than a round through a ring, which hands each write to ext4, and all that has to do
 * with tmpfs, to a kernel thread. For many it is dearer: the ring needs one call for all, and a thread has a processor of
 * its own to work on.
 *
 * Invariant: a read never waits for a disk (RWF_NOWAIT, preadv2(2)). A write may, where too much of the cache is dirty, or
 * the file system busy with its journal. So none is tried while a flush is under way, nor for a while after one that took
 * long; and none of part of a page, the rest of which may have to be read first: from a device that this very process
 * serves, that read would never end.
 */
import { Caching, EAGAIN, type IoFile, IoOperation, type IoRequest } from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import type { VectorTable } from "./vector-table.ts";

const RWF_NOWAIT = 8;
/** Requests of one round that are few: reads of a cached file, which a ring answers within its one call ... */
const FEW_READS = 2;
/** ... and what it leaves to a thread, whose wake-up costs as much as so many calls. */
const FEW_FOR_THREADS = 16;
/** Bytes. Beyond it copying dominates, and it would block the loop for longer than a ring's bookkeeping costs. */
const LONGEST = 65536;
/** Bytes of a page of the cache; larger ones there are too, where nobody minds. */
const CACHE_PAGE = 4096;
/** Reads that go straight to the disk after one was not in the cache: a cold file pays 1/32 of a call per read. */
const READS_AFTER_MISS = 32;
/** A write that takes longer has waited for something; copying 64 KiB takes a fiftieth of it. */
const STALL_MILLISECONDS = 1;
/** Writes that are not tried after one that waited: twice as many after each that follows, half as many after one that
 * did not. The kernel lets a writer wait 0.2 s at most (mm/page-writeback.c: MAX_PAUSE). */
const LEAST_WRITES_AFTER_STALL = 64;
const MOST_WRITES_AFTER_STALL = 16384;

/** Whether the ring leaves a read or write to a kernel thread, as far as we know. */
export function needsThread({ caching }: IoFile, operation: IoOperation): boolean {
  if (caching === Caching.memory) return operation <= IoOperation.write;
  return caching === Caching.disk && operation === IoOperation.write;
}

/** Whether a read or write is to be tried at once, one of `round` requests, where `awake` says that the ring's threads have
 * others to do. Each answer counts: ask once. */
export function goesAtOnce(
  file: IoFile,
  operation: IoOperation,
  { offset, length }: IoRequest,
  round: number,
  awake: boolean,
): boolean {
  const { caching, pageCache: state, syncs } = file;
  if (length > LONGEST || operation > IoOperation.write) return false;
  // What needs no waking up costs less than a call.
  if (awake && needsThread(file, operation)) return false;
  if (caching === Caching.memory) return round <= FEW_FOR_THREADS;
  if (caching !== Caching.disk) return false;
  if (operation === IoOperation.read) {
    if (round > FEW_READS || !state.readsAtOnce) return false;
    if (state.missesLeft === 0) return true;
    state.missesLeft--;
    return false;
  }
  if (round > FEW_FOR_THREADS || syncs > 0) return false;
  if (offset % CACHE_PAGE !== 0 || length % CACHE_PAGE !== 0) return false;
  if (state.stallLeft === 0) return true;
  state.stallLeft--;
  return false;
}

/** Reads what it can. Returns the bytes read, 0 where none were cached. Uses the slot's vectors, which are free again on
 * return. */
export function readCached(
  calls: Ffi,
  { descriptor, caching, pageCache: state }: IoFile,
  { segments, segmentByte, offset, length }: IoRequest,
  vectors: VectorTable,
  slot: number,
): number {
  vectors.fill(slot, segments!, segmentByte, length);
  // On tmpfs a read that must not wait always fails; no other kind waits there.
  const flags = caching === Caching.memory ? 0 : RWF_NOWAIT;
  const read = calls.preadv2(descriptor, vectors.addressOf(slot), vectors.count, offset, flags);
  if (read > 0) return read;
  if (read < 0 && calls.errno() === EAGAIN) state.missesLeft = READS_AFTER_MISS;
  // Another error (EOPNOTSUPP, say) will be met again by the read proper, where it counts.
  else state.readsAtOnce = false;
  return 0;
}

/** A write that was done at once took so long. */
export function tookAtOnce({ pageCache: state }: IoFile, milliseconds: number): void {
  if (milliseconds > STALL_MILLISECONDS) {
    const doubled = Math.max(LEAST_WRITES_AFTER_STALL, state.stall * 2);
    state.stall = Math.min(doubled, MOST_WRITES_AFTER_STALL);
    state.stallLeft = state.stall;
  } else if (state.stall > 0) state.stall >>= 1;
}
