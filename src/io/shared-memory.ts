/**
 * Memory that several processes share: a memfd, mapped with MAP_SHARED (memfd_create(2), fcntl(2) "File Sealing").
 *
 * Invariant: no mapped memory can shrink. Touching a page beyond the end of a mapped file is SIGBUS, which nobody
 * survives; so memory is sealed against truncation before it is mapped, and what another process offers is refused
 * unless it is. The peer still writes into it as it likes: that is the ring's business.
 */
import { closeSync, constants, fstatSync, openSync, statfsSync } from "node:fs";
import { type Ffi, requireFfi, systemError } from "./ffi.ts";
import { MemoryRegion } from "./memory.ts";

// <linux/memfd.h>, <linux/fcntl.h>, <asm-generic/mman-common.h>, <linux/magic.h>
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SEAL = 1;
const F_SEAL_SHRINK = 2;
const F_SEAL_GROW = 4;
const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const TMPFS_MAGIC = 0x01021994;

/** More than any domain's memory here; a peer that offers more wants our address space. Bytes. */
const MAXIMUM_BYTE_LENGTH = 2 ** 40;

export interface SharedMemory {
  /** Its disposal unmaps the memory and closes the descriptor. */
  readonly region: MemoryRegion;
  /** Closed on exec. Others open it as /proc/PID/fd/DESCRIPTOR. */
  readonly descriptor: number;
}

/** Zeroed, page-aligned memory of that many bytes, for ever. `name` shows up in /proc/PID/maps. */
export function createSharedMemory(name: string, byteLength: number): SharedMemory {
  const calls = requireFfi("memory shared between processes");
  const descriptor = calls.memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) throw systemError("memfd_create", calls.errno(), name);
  try {
    if (calls.ftruncate(descriptor, byteLength) < 0) {
      throw systemError("ftruncate", calls.errno(), name);
    }
    const seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (calls.fcntl(descriptor, F_ADD_SEALS, seals) < 0) {
      throw systemError("fcntl(F_ADD_SEALS)", calls.errno(), name);
    }
    return map(calls, descriptor, byteLength, name, () => calls.close(descriptor));
  } catch (error) {
    calls.close(descriptor);
    throw error;
  }
}

/** Maps the whole of what another process shares: a path such as /proc/PID/fd/N, or a descriptor of ours, which stays
 * the caller's. Throws where it is no memfd or could shrink. */
export function openSharedMemory(
  source: string | number,
  maximumByteLength: number = MAXIMUM_BYTE_LENGTH,
): SharedMemory {
  const calls = requireFfi("memory shared between processes");
  const path = typeof source === "number" ? `/proc/self/fd/${source}` : source;
  // Without O_NONBLOCK, opening a FIFO would wait for its other end.
  const descriptor = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  try {
    const size = fstatSync(descriptor).size;
    const seals = calls.fcntl(descriptor, F_GET_SEALS, 0);
    // A memfd of huge pages is SIGBUS again when none is free, so it must be of plain ones.
    const plain = statfsSync(`/proc/self/fd/${descriptor}`).type === TMPFS_MAGIC;
    if (seals < 0 || !plain || (seals & F_SEAL_SHRINK) === 0) {
      throw refusal(path, "is not a memfd sealed against shrinking");
    }
    if (size === 0) throw refusal(path, "is empty");
    if (size > maximumByteLength) {
      throw refusal(path, `has ${size} bytes, more than the ${maximumByteLength} expected`);
    }
    return map(calls, descriptor, size, path, () => closeSync(descriptor));
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

/** Maps the same memory once more, only to be read: a write is SIGSEGV. undefined where there is no room for it. */
export function mapReadOnly(descriptor: number, byteLength: number): MemoryRegion | undefined {
  const calls = requireFfi("memory shared between processes");
  const address = calls.mmap(0, byteLength, PROT_READ, MAP_SHARED, descriptor, 0);
  if (address < 0) return undefined;
  const bytes = new Uint8Array(calls.view(address, byteLength));
  return new MemoryRegion(bytes, address, () => void calls.munmap(address, byteLength));
}

function refusal(path: string, why: string): Error {
  return Object.assign(new Error(`refusing to map ${path}: it ${why}`), { code: "EINVAL" });
}

function map(
  calls: Ffi,
  descriptor: number,
  byteLength: number,
  name: string,
  close: () => void,
): SharedMemory {
  const address = calls.mmap(0, byteLength, PROT_READ_WRITE, MAP_SHARED, descriptor, 0);
  if (address < 0) throw systemError("mmap", calls.errno(), name);
  const bytes = new Uint8Array(calls.view(address, byteLength));
  const region = new MemoryRegion(bytes, address, () => {
    calls.munmap(address, byteLength);
    close();
  });
  return { region, descriptor };
}
