/** Which parts of a file hold data: lseek(2) with SEEK_DATA and SEEK_HOLE. A hole is unallocated and reads as zeroes;
 * so does what was allocated and never written. */
import type { Ffi } from "../../../io/ffi.ts";
import { systemError } from "../../../io/ffi.ts";
import type { Extent } from "../../block-store.ts";

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = 6;
/** Runs between two turns of the event loop: a file of a million holes must not stop the disk. */
const RUNS_PER_TURN = 128;

/** The runs of [offset, offset + length), which ends at or before the end of the file. Throws the system's error. */
export async function* runsOf(
  calls: Ffi,
  descriptor: number,
  offset: number,
  length: number,
  signal?: AbortSignal,
): AsyncIterable<Extent> {
  const end = offset + length;
  let runs = 0;
  for (let at = offset; at < end; ) {
    signal?.throwIfAborted();
    const data = seek(calls, descriptor, at, SEEK_DATA, end);
    if (data > at) yield { offset: at, length: data - at, hole: true, zero: true };
    at = data;
    if (at >= end) return;
    const hole = seek(calls, descriptor, at, SEEK_HOLE, end);
    // The file may change meanwhile; a run of nothing would never end.
    if (hole > at) yield { offset: at, length: hole - at, hole: false, zero: false };
    at = hole;
    if (++runs % RUNS_PER_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Where the next run of data or the next hole begins, at most `end`. */
function seek(calls: Ffi, descriptor: number, from: number, whence: number, end: number): number {
  const found = calls.lseek(descriptor, from, whence);
  if (found >= 0) return Math.min(found, end);
  const errno = calls.errno();
  // No data follows, or the file has been cut meanwhile.
  if (errno === ENXIO) return end;
  throw systemError("lseek", errno);
}
