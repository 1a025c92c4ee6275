/**
 * A small file of ours, mapped: what is written there outlives the process, whatever ends it.
 *
 * Invariant: the file has all its blocks before it is mapped: a page that the file system cannot give would be SIGBUS,
 * which nobody survives. Nobody else may shrink it, so it belongs where nobody else may write.
 */
import { closeSync, constants, fstatSync, ftruncateSync, openSync } from "node:fs";
import { requireFfi, systemError } from "./ffi.ts";
import { MemoryRegion } from "./memory.ts";

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

/** Maps `byteLength` bytes of the file, which is made (0600) where it is missing; what it held is kept where it is as
 * long, and zeroes else. Throws a system error, also for what is no file. Disposal unmaps; the file stays. */
export function mapFile(path: string, byteLength: number): MemoryRegion {
  const calls = requireFfi("a mapped file");
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
  const descriptor = openSync(path, flags, 0o600);
  try {
    const { size } = fstatSync(descriptor);
    if (size !== byteLength) {
      ftruncateSync(descriptor, 0);
      ftruncateSync(descriptor, byteLength);
    }
    if (calls.fallocate(descriptor, 0, 0, byteLength) < 0) {
      throw systemError("fallocate", calls.errno(), path);
    }
    const address = calls.mmap(0, byteLength, PROT_READ_WRITE, MAP_SHARED, descriptor, 0);
    if (address < 0) throw systemError("mmap", calls.errno(), path);
    const bytes = new Uint8Array(calls.view(address, byteLength));
    return new MemoryRegion(bytes, address, () => void calls.munmap(address, byteLength));
  } finally {
    closeSync(descriptor);
  }
}
