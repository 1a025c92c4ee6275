/**
 * Pages of a memfd that lie apart, mapped side by side (mmap(2) with MAP_FIXED over a reservation of ours), as Xen
 * maps the pages of a ring wherever they are.
 */
import { ffi } from "../../io/ffi.ts";
import { PAGE_SIZE } from "../domain.ts";

// <asm-generic/mman-common.h>
const PROT_NONE = 0;
const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;

export interface ScatteredPages extends Disposable {
  /** Fatal to touch after disposal. */
  readonly bytes: Uint8Array;
}

/** Page i is the page of the memfd at byte `starts[i]`; undefined where the process cannot map it so. */
export function mapScattered(
  descriptor: number,
  starts: Float64Array,
  count: number,
  readOnly: boolean,
): ScatteredPages | undefined {
  const calls = ffi();
  if (calls === undefined) return undefined;
  const byteLength = count * PAGE_SIZE;
  const address = calls.mmap(0, byteLength, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address < 0) return undefined;
  const protection = readOnly ? PROT_READ : PROT_READ_WRITE;
  for (let i = 0; i < count; i++) {
    const page = address + i * PAGE_SIZE;
    const flags = MAP_SHARED | MAP_FIXED;
    if (calls.mmap(page, PAGE_SIZE, protection, flags, descriptor, starts[i]!) === page) continue;
    calls.munmap(address, byteLength);
    return undefined;
  }
  const bytes = new Uint8Array(calls.view(address, byteLength));
  return { bytes, [Symbol.dispose]: () => void calls.munmap(address, byteLength) };
}
