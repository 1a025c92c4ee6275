/**
 * Locks on disk images that QEMU's programs respect, and that respect theirs: open file description locks (fcntl(2),
 * F_OFD_SETLK) on single bytes of the image, as block/file-posix.c of QEMU lays them out. A byte from 100 on says
 * that someone uses a permission, a byte from 200 on that someone does not share it; all are read locks, tested
 * against write locks of the other kind.
 *
 * Invariant: the locks live as long as the descriptor's open file description, so that no crash leaves one behind.
 */
import { type Ffi, systemError } from "./ffi.ts";
import { allocateRegion } from "./memory.ts";

/** Bits of what a user does, or bars others from doing: include/block/block-common.h, BLK_PERM_*. */
export const ImageUse = { consistentRead: 1, write: 2, resize: 8 } as const;
const USES = [
  [0, "reading"],
  [1, "writing"],
  [3, "resizing"],
] as const;
const USED_BASE = 100;
const UNSHARED_BASE = 200;

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const SEEK_SET = 0;
/** struct flock: type, whence (shorts), start at 8, length at 16, pid at 24. */
const FLOCK_BYTES = 32;

/** Takes the locks. Returns undefined, or what stands against it, for people: "another process is writing to it".
 * `uses` and `bars` are bits of ImageUse. Throws where the file system has no locks. */
export function lockImage(
  calls: Ffi,
  descriptor: number,
  uses: number,
  bars: number,
): string | undefined {
  const region = allocateRegion(FLOCK_BYTES);
  const lock = new DataView(region.bytes.buffer, region.bytes.byteOffset, FLOCK_BYTES);
  const call = (command: number, type: number, byte: number): number => {
    lock.setInt16(0, type, true);
    lock.setInt16(2, SEEK_SET, true);
    lock.setBigInt64(8, BigInt(byte), true);
    lock.setBigInt64(16, 1n, true);
    lock.setInt32(24, 0, true);
    return calls.fcntl(descriptor, command, region.address);
  };
  const set = (byte: number) => {
    if (call(F_OFD_SETLK, F_RDLCK, byte) < 0)
      throw systemError("fcntl(F_OFD_SETLK)", calls.errno());
  };
  const isTaken = (byte: number): boolean => {
    if (call(F_OFD_GETLK, F_WRLCK, byte) < 0) {
      throw systemError("fcntl(F_OFD_GETLK)", calls.errno());
    }
    return lock.getInt16(0, true) !== F_UNLCK;
  };
  // First take, then test: of two that come at once, each sees the other.
  for (const [bit] of USES) {
    if (uses & (1 << bit)) set(USED_BASE + bit);
    if (bars & (1 << bit)) set(UNSHARED_BASE + bit);
  }
  for (const [bit, doing] of USES) {
    if (uses & (1 << bit) && isTaken(UNSHARED_BASE + bit)) {
      return `another process keeps others from ${doing} it`;
    }
    if (bars & (1 << bit) && isTaken(USED_BASE + bit)) return `another process is ${doing} it`;
  }
  return undefined;
}
