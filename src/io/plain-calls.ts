/** Requests carried out by plain system calls, for the engines that do so always, sometimes, or for want of anything else. */
import {
  EAGAIN,
  EINTR,
  EIO,
  type IoFile,
  IoOperation,
  type IoRequest,
  MAXIMUM_RETRIES,
} from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import { FALLOCATE_MODE, POSIX_FADV_WILLNEED } from "./file-modes.ts";
import type { Reactor } from "./reactor.ts";
import type { VectorTable } from "./vector-table.ts";

/** Bytes of a hole or of zeroes that no thread is worth: a millisecond on tmpfs. */
const ADJUSTED_AT_ONCE = 2 << 20;

/** Reads or writes all of a request. Returns 0 or a negative errno. Uses the slot's vectors, which are free again on
 * return. */
export function transfer(
  calls: Ffi,
  { descriptor }: IoFile,
  { segments, segmentByte, offset, length }: IoRequest,
  operation: IoOperation,
  vectors: VectorTable,
  slot: number,
): number {
  const read = operation === IoOperation.read;
  let retries = 0;
  for (let done = 0; done < length; ) {
    vectors.fill(slot, segments!, segmentByte + done, length - done);
    const count = call(calls, descriptor, read, vectors, slot, offset + done);
    if (count > 0) done += count;
    // Nothing read or written: the file ends inside the disk.
    else if (count === 0) return -EIO;
    else {
      const errno = calls.errno();
      const again = errno === EINTR || errno === EAGAIN;
      if (!again || retries++ === MAXIMUM_RETRIES) return -errno;
    }
  }
  return 0;
}

/** Bytes done of the vectors filled last, or -1. */
function call(
  calls: Ffi,
  descriptor: number,
  read: boolean,
  vectors: VectorTable,
  slot: number,
  offset: number,
): number {
  const { firstAddress, byteLength, count } = vectors;
  if (count === 1) {
    return read
      ? calls.pread(descriptor, firstAddress, byteLength, offset)
      : calls.pwrite(descriptor, firstAddress, byteLength, offset);
  }
  const table = vectors.addressOf(slot);
  return read
    ? calls.preadv2(descriptor, table, count, offset, 0)
    : calls.pwritev2(descriptor, table, count, offset, 0);
}

/** Changes a file's blocks and finishes the request: long ranges in another thread, because tmpfs takes or gives back
 * each of their pages meanwhile. */
export function adjust(
  calls: Ffi,
  reactor: Reactor,
  file: IoFile,
  request: IoRequest,
  operation: IoOperation,
): void {
  const { descriptor, owner } = file;
  const { offset, length } = request;
  if (operation === IoOperation.prefetch) {
    const result = calls.posixFadvise(descriptor, offset, length, POSIX_FADV_WILLNEED);
    owner.finished(request, -result);
    return;
  }
  const mode = FALLOCATE_MODE[operation]!;
  if (length <= ADJUSTED_AT_ONCE) {
    owner.finished(request, fallocate(calls, descriptor, mode, offset, length));
    return;
  }
  calls.fallocateLater(descriptor, mode, offset, length, (result) => {
    // Once more for the errno, which that thread took with it; what failed there fails here, and at once.
    const again = result < 0 ? fallocate(calls, descriptor, mode, offset, length) : 0;
    owner.finished(request, again);
    reactor.settle();
  });
}

/** 0 or a negative errno. */
function fallocate(
  calls: Ffi,
  descriptor: number,
  mode: number,
  offset: number,
  length: number,
): number {
  for (;;) {
    if (calls.fallocate(descriptor, mode, offset, length) === 0) return 0;
    const errno = calls.errno();
    if (errno !== EINTR) return -errno;
  }
}
