/** A hypervisor of one page table, for tests of what stands directly above the port: it counts, and can be told to
 * refuse. The embedded machine is tested elsewhere, and used by the tests of whole disks. */
import { MemoryRegion } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import {
  type Domain,
  type GrantMapBatch,
  GrantStatus,
  type GrantTable,
  type OwnPages,
  PAGE_SIZE,
} from "../../src/xen/domain.ts";

export class FakeGrants implements GrantTable {
  grantsPages = true;
  readonly prefersCopy = false;
  readonly freePages = 64;
  readonly freeEntries = 64;
  readonly region: MemoryRegion = new MemoryRegion(new Uint8Array(64 * PAGE_SIZE), 0);
  readonly handles: Map<number, number> = new Map();
  /** References that map() refuses. */
  readonly refused: Set<number> = new Set();
  /** Pages that the peer keeps mapped: endAccess answers false for them. */
  readonly held: Set<number> = new Set();
  /** Grant entries left. */
  entries: number = Number.POSITIVE_INFINITY;
  maps = 0;
  #nextHandle = 1;
  #nextReference = 8;

  get counters(): GrantTable["counters"] {
    return {
      granted: 0,
      mapped: this.handles.size,
      maps: this.maps,
      unmaps: 0,
      copies: 0,
      quarantined: 0,
    };
  }

  allocate(pageCount: number): OwnPages | undefined {
    if (pageCount * PAGE_SIZE > this.region.bytes.length) return undefined;
    const references = new Uint32Array(pageCount);
    return {
      region: this.region,
      start: 0,
      count: pageCount,
      references,
      grant: (index) => {
        if (this.entries === 0) return false;
        this.entries--;
        references[index] = this.#nextReference++;
        return true;
      },
      endAccess: (index) => {
        if (this.held.has(index)) return false;
        this.entries++;
        references[index] = 0;
        return true;
      },
      [Symbol.dispose]() {},
    };
  }

  map(_peer: number, batch: GrantMapBatch): void {
    for (let i = 0; i < batch.count; i++) {
      const reference = batch.references[i]!;
      if (this.refused.has(reference)) {
        batch.statuses[i] = GrantStatus.badGrantReference;
        continue;
      }
      this.maps++;
      batch.statuses[i] = GrantStatus.okay;
      batch.handles[i] = this.#nextHandle;
      batch.regions[i] = this.region;
      batch.starts[i] = (reference % 64) * PAGE_SIZE;
      this.handles.set(this.#nextHandle++, reference);
    }
  }

  unmap(handle: number): GrantStatus {
    return this.handles.delete(handle) ? GrantStatus.okay : GrantStatus.badHandle;
  }

  mapContiguous(): never {
    throw new Error("no rings here");
  }
  copy(): never {
    throw new Error("no copies here");
  }
  copyPages(): never {
    throw new Error("no copies here");
  }
  whenFree(): Disposable {
    return { [Symbol.dispose]() {} };
  }
}

export function fakeDomain(grants: FakeGrants): Domain {
  return {
    id: 1,
    grants,
    reactor: new Reactor(),
    get events(): never {
      throw new Error("no events here");
    },
    get store(): never {
      throw new Error("no store here");
    },
    async [Symbol.asyncDispose]() {},
  };
}
