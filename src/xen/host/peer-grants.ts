/**
 * Pages of peers, through /dev/xen/gntdev: mapped into this process, or copied (<xen/gntdev.h>, drivers/xen/gntdev.c).
 *
 * gntdev unmaps exactly what was mapped at once, so pages are mapped together only where the batch says that they are
 * given back together, and otherwise each alone. It tells of a mapping of several no more than that one of them failed:
 * they are then tried one by one, so that each has its own status. Invariant: a handle names a page of a mapping, and a
 * mapping lasts until its last handle has gone.
 */
import type { Ffi } from "../../io/ffi.ts";
import { MemoryRegion } from "../../io/memory.ts";
import {
  type ContiguousMapping,
  DOMID_FIRST_RESERVED,
  type GrantMapBatch,
  GrantStatus,
  PAGE_SIZE,
} from "../domain.ts";
import type { MutableCounters } from "../grant-counters.ts";
import type { Devices } from "./devices.ts";
import { IoctlArgument } from "./ioctl-argument.ts";
import {
  GRANT_REFERENCE_BYTES,
  IOCTL_GNTDEV_MAP_GRANT_REF,
  IOCTL_GNTDEV_UNMAP_GRANT_REF,
  MapGrantRef,
  UnmapGrantRef,
} from "./ioctls.ts";
import { statusOf } from "./status.ts";

/** Pages mapped at a time. Each may be a mapping of its own, and Linux gives a process 65530 (vm.max_map_count), which the
 * rest of the program needs some of. */
export const MAX_MAPPED_PAGES = 32768;
/** Pages that one ioctl maps: the largest request with its indirect pages. */
const MAX_PAGES_TOGETHER = 512;

// <asm-generic/mman-common.h>
const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

/** Pages that were mapped by one call. */
interface Mapping {
  readonly region: MemoryRegion;
  /** Byte in the device file. */
  readonly offset: number;
  readonly pageCount: number;
  handles: number;
}

export class PeerGrants implements Disposable {
  readonly #devices: Devices;
  readonly #calls: Ffi;
  readonly #counters: MutableCounters;
  readonly #descriptor: number;
  readonly #argument = new IoctlArgument(
    MapGrantRef.references + MAX_PAGES_TOGETHER * GRANT_REFERENCE_BYTES,
  );
  /** By handle. */
  readonly #mappings: (Mapping | undefined)[] = [];
  readonly #freeHandles: number[] = [];

  constructor(devices: Devices, counters: MutableCounters) {
    this.#devices = devices;
    this.#calls = devices.calls;
    this.#counters = counters;
    this.#descriptor = devices.open("gntdev");
  }

  get descriptor(): number {
    return this.#descriptor;
  }

  map(peer: number, batch: GrantMapBatch): void {
    const known = isPeer(peer);
    for (let first = 0; first < batch.count; ) {
      const count = known && batch.together ? runLength(batch, first) : 1;
      const status = known ? this.#mapRun(peer, batch, first, count) : GrantStatus.badDomain;
      if (status !== GrantStatus.okay && count > 1) {
        for (let i = first; i < first + count; i++) {
          batch.statuses[i] = this.#mapRun(peer, batch, i, 1);
        }
      } else batch.statuses.fill(status, first, first + count);
      first += count;
    }
  }

  #mapRun(peer: number, batch: GrantMapBatch, first: number, count: number): GrantStatus {
    const { references } = batch;
    const readOnly = batch.readOnly[first] !== 0;
    const mapping = this.#mapPages(peer, references.subarray(first, first + count), readOnly);
    if (typeof mapping === "number") return mapping;
    for (let i = 0; i < count; i++) {
      const handle = this.#freeHandles.pop() ?? this.#mappings.length;
      this.#mappings[handle] = mapping;
      batch.handles[first + i] = handle;
      batch.regions[first + i] = mapping.region;
      batch.starts[first + i] = i * PAGE_SIZE;
    }
    return GrantStatus.okay;
  }

  /** Enters the references into gntdev's list, and maps what stands there. */
  #mapPages(
    peer: number,
    references: ArrayLike<number>,
    readOnly: boolean,
  ): Mapping | Exclude<GrantStatus, 0> {
    const count = references.length;
    if (count > MAX_PAGES_TOGETHER || this.#counters.mapped + count > MAX_MAPPED_PAGES) {
      return GrantStatus.noSpace;
    }
    const { words, address } = this.#argument;
    words[MapGrantRef.count / 4] = count;
    for (let i = 0; i < count; i++) {
      const entry = (MapGrantRef.references + i * GRANT_REFERENCE_BYTES) / 4;
      words[entry] = peer;
      words[entry + 1] = references[i]!;
    }
    const calls = this.#calls;
    if (calls.ioctl(this.#descriptor, IOCTL_GNTDEV_MAP_GRANT_REF, address) < 0) {
      return statusOf(calls.errno());
    }
    const offset = this.#argument.getUint64(MapGrantRef.index);
    const protection = readOnly ? PROT_READ : PROT_READ_WRITE;
    const byteLength = count * PAGE_SIZE;
    const at = calls.mmap(0, byteLength, protection, MAP_SHARED, this.#descriptor, offset);
    if (at < 0) {
      const status = statusOf(calls.errno());
      this.#forget(offset, count);
      return status;
    }
    const region = new MemoryRegion(new Uint8Array(calls.view(at, byteLength)), at, () => {
      calls.munmap(at, byteLength);
      this.#forget(offset, count);
    });
    this.#counters.mapped += count;
    this.#counters.maps += count;
    return { region, offset, pageCount: count, handles: count };
  }

  /** Takes references off gntdev's list, after the unmapping. */
  #forget(offset: number, count: number): void {
    this.#argument.setUint64(UnmapGrantRef.index, offset);
    this.#argument.words[UnmapGrantRef.count / 4] = count;
    this.#calls.ioctl(this.#descriptor, IOCTL_GNTDEV_UNMAP_GRANT_REF, this.#argument.address);
  }

  unmap(handle: number): GrantStatus {
    const mapping = this.#mappings[handle];
    if (mapping === undefined) return GrantStatus.badHandle;
    this.#mappings[handle] = undefined;
    this.#freeHandles.push(handle);
    if (--mapping.handles === 0) this.#unmapPages(mapping);
    return GrantStatus.okay;
  }

  #unmapPages(mapping: Mapping): void {
    mapping.region[Symbol.dispose]();
    this.#counters.mapped -= mapping.pageCount;
    this.#counters.unmaps += mapping.pageCount;
  }

  mapContiguous(
    peer: number,
    references: readonly number[],
    readOnly: boolean,
  ): ContiguousMapping | Exclude<GrantStatus, 0> {
    if (references.length === 0) return GrantStatus.generalError;
    if (!isPeer(peer)) return GrantStatus.badDomain;
    const mapping = this.#mapPages(peer, references, readOnly);
    if (typeof mapping === "number") return mapping;
    // It has one handle, so that the domain's end finds it.
    mapping.handles = 1;
    const handle = this.#freeHandles.pop() ?? this.#mappings.length;
    this.#mappings[handle] = mapping;
    return {
      bytes: mapping.region.bytes,
      [Symbol.dispose]: () => {
        if (this.#mappings[handle] === mapping) this.unmap(handle);
      },
    };
  }

  /** Unmaps everything. */
  [Symbol.dispose](): void {
    for (let handle = 0; handle < this.#mappings.length; handle++) this.unmap(handle);
    this.#devices.close(this.#descriptor);
  }
}

function isPeer(domid: number): boolean {
  return Number.isInteger(domid) && domid >= 0 && domid < DOMID_FIRST_RESERVED;
}

/** Entries from `first` on that one mapping can hold: of the same access. */
function runLength({ count, readOnly }: GrantMapBatch, first: number): number {
  const end = Math.min(count, first + MAX_PAGES_TOGETHER);
  let next = first + 1;
  while (next < end && readOnly[next] === readOnly[first]) next++;
  return next - first;
}
