/**
 * The mapping half of a grant table: what Xen does in grant_table.c for map_grant_ref, unmap_grant_ref and copy, run
 * by the domain that asks, on the granter's own table.
 *
 * A grant names the one domain that may use it, so who counts the uses is that domain alone: `readers` and `writers`
 * of each reference are kept here, and the entry's in-use bits are set with the first and cleared with the last.
 * Invariants: the uses of all references are the handles given out; an operation that fails changes nothing; nothing
 * read from the granter's table is read twice or used before its bounds were checked. What one granter has us map
 * takes nothing from the others.
 *
 * Statuses are those of Xen, but where Xen answers general_error for every entry that does not permit the access,
 * this says bad_gntref (nothing granted to us there) or permission_denied (a writable use of a read-only grant).
 */
import { invariant } from "../../util/assert.ts";
import { type GrantCopy, type GrantMapBatch, GrantStatus, PAGE_SIZE } from "../domain.ts";
import type { DomainMemory } from "./domain-memory.ts";
import {
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_type_mask,
  GTF_writing,
} from "./layout.ts";
import type { Neighbours } from "./neighbours.ts";
import { type MutableCounters, UNSTABLE_ENTRY_TRIES } from "./own-grants.ts";

/** Mappings of one granter's pages at a time: as many as its table has entries by default, or 128 MiB in flight.
 * Whoever names the same entry in thousands of requests finds noSpace here. */
export const MAX_MAPPINGS_PER_PEER = 32768;

/** Mappings of one domain at a time, for thirty-two peers that all have us map as much as they may: 20 MiB of ours. */
const MAX_HANDLES = 32 * MAX_MAPPINGS_PER_PEER;

const FIRST_HANDLES = 256;

/** The uses of one granter's entries by us. */
class Granter {
  readonly memory: DomainMemory;
  readonly readers: Uint32Array;
  readonly writers: Uint32Array;
  /** Handles that name this granter. */
  mapped = 0;

  constructor(memory: DomainMemory) {
    this.memory = memory.retain();
    this.readers = new Uint32Array(memory.shape.grantEntries);
    this.writers = new Uint32Array(memory.shape.grantEntries);
  }

  /** Marks one use of the entry as Xen's _set_status_v1 does. */
  pin(reference: number, self: number, readOnly: boolean): GrantStatus {
    const words = this.memory.grantWords;
    if (!(reference < this.readers.length)) return GrantStatus.badGrantReference;
    const wanted = readOnly ? GTF_reading : GTF_reading | GTF_writing;
    for (let tries = 0; tries < UNSTABLE_ENTRY_TRIES; tries++) {
      const word = Atomics.load(words, reference * 2);
      if ((word & GTF_type_mask) !== GTF_permit_access || word >>> 16 !== self) {
        return GrantStatus.badGrantReference;
      }
      if (!readOnly && (word & GTF_readonly) !== 0) return GrantStatus.permissionDenied;
      const pinned = (word | wanted) >>> 0;
      if (Atomics.compareExchange(words, reference * 2, word, pinned) !== word) continue;
      if (readOnly) this.readers[reference]!++;
      else this.writers[reference]!++;
      return GrantStatus.okay;
    }
    return GrantStatus.generalError;
  }

  unpin(reference: number, readOnly: boolean): void {
    if (readOnly) this.readers[reference]!--;
    else this.writers[reference]!--;
    if (this.writers[reference] !== 0) return;
    const unused = this.readers[reference] === 0 ? GTF_reading | GTF_writing : GTF_writing;
    Atomics.and(this.memory.grantHalves, reference * 4, ~unused & 0xffff);
  }

  /** Byte of the page that a pinned entry names; -1 when that is no ordinary page of the granter. */
  start(reference: number): number {
    const frame = Atomics.load(this.memory.grantWords, reference * 2 + 1);
    const { firstFrame, pageCount } = this.memory.shape;
    return frame >= firstFrame && frame < pageCount ? frame * PAGE_SIZE : -1;
  }
}

export class PeerGrants {
  readonly #self: number;
  readonly #neighbours: Neighbours;
  readonly #counters: MutableCounters;
  readonly #granters = new Map<number, Granter>();
  /** By handle: the granter (undefined: the handle is free), the reference and how it is used. */
  readonly #owners: (Granter | undefined)[] = [];
  #references = new Uint32Array(FIRST_HANDLES);
  #readOnly = new Uint8Array(FIRST_HANDLES);
  readonly #freeHandles: number[] = [];
  readonly #mappingsPerPeer: number;

  constructor(
    self: number,
    neighbours: Neighbours,
    counters: MutableCounters,
    mappingsPerPeer: number = MAX_MAPPINGS_PER_PEER,
  ) {
    this.#mappingsPerPeer = mappingsPerPeer;
    this.#self = self;
    this.#neighbours = neighbours;
    this.#counters = counters;
  }

  map(peer: number, batch: GrantMapBatch): void {
    const granter = this.#granter(peer);
    for (let i = 0; i < batch.count; i++) {
      if (granter === undefined) batch.statuses[i] = GrantStatus.badDomain;
      else this.#mapOne(granter, batch, i);
    }
  }

  #mapOne(granter: Granter, batch: GrantMapBatch, i: number): void {
    const reference = batch.references[i]!;
    const readOnly = batch.readOnly[i] !== 0;
    const allowed = granter.mapped < this.#mappingsPerPeer;
    const handle = allowed ? (this.#freeHandles.pop() ?? this.#newHandle()) : -1;
    if (handle < 0) {
      batch.statuses[i] = GrantStatus.noSpace;
      return;
    }
    const status = granter.pin(reference, this.#self, readOnly);
    const start = status === GrantStatus.okay ? granter.start(reference) : -1;
    if (start < 0) {
      if (status === GrantStatus.okay) granter.unpin(reference, readOnly);
      this.#freeHandles.push(handle);
      batch.statuses[i] = status === GrantStatus.okay ? GrantStatus.badPage : status;
      return;
    }
    this.#owners[handle] = granter;
    this.#references[handle] = reference;
    this.#readOnly[handle] = readOnly ? 1 : 0;
    granter.mapped++;
    this.#counters.mapped++;
    this.#counters.maps++;
    batch.statuses[i] = GrantStatus.okay;
    batch.handles[i] = handle;
    batch.regions[i] = granter.memory.region;
    batch.starts[i] = start;
  }

  unmap(handle: number): GrantStatus {
    const granter = this.#owners[handle];
    if (granter === undefined) return GrantStatus.badHandle;
    this.#owners[handle] = undefined;
    this.#freeHandles.push(handle);
    granter.unpin(this.#references[handle]!, this.#readOnly[handle] !== 0);
    granter.mapped--;
    this.#counters.mapped--;
    this.#counters.unmaps++;
    if (granter.mapped === 0) this.#letGoIfEnded(granter);
    return GrantStatus.okay;
  }

  /** The memfd in which a mapped page lies, if it lies in one. */
  descriptor(handle: number): number | undefined {
    return this.#owners[handle]?.memory.descriptor;
  }

  copy(operations: readonly GrantCopy[]): void {
    for (const operation of operations) operation.status = this.#copyOne(operation);
  }

  #copyOne(operation: GrantCopy): GrantStatus {
    const { reference, offset, length, local } = operation;
    const inPage =
      offset >>> 0 === offset && length >>> 0 === length && offset + length <= PAGE_SIZE;
    if (!inPage || length > local.length) return GrantStatus.badCopyArgument;
    const granter = this.#granter(operation.peer);
    if (granter === undefined) return GrantStatus.badDomain;
    const readOnly = operation.direction === "fromPeer";
    const status = granter.pin(reference, this.#self, readOnly);
    if (status !== GrantStatus.okay) return status;
    const start = granter.start(reference);
    if (start >= 0 && readOnly) {
      granter.memory.bytes.copy(local, 0, start + offset, start + offset + length);
    } else if (start >= 0) {
      Buffer.prototype.copy.call(local, granter.memory.bytes, start + offset, 0, length);
    }
    granter.unpin(reference, readOnly);
    if (start < 0) return GrantStatus.badPage;
    this.#counters.copies++;
    return GrantStatus.okay;
  }

  /** The granter's memory as it is now: a domid that was used again names another domain. */
  #granter(domid: number): Granter | undefined {
    const memory = this.#neighbours.find(domid)?.memory;
    const known = this.#granters.get(domid);
    if (known !== undefined && known.memory === memory) return known;
    if (known !== undefined) {
      this.#granters.delete(domid);
      if (known.mapped === 0) known.memory.release();
    }
    if (memory === undefined) return undefined;
    const granter = new Granter(memory);
    this.#granters.set(domid, granter);
    return granter;
  }

  /** Lets go of the memory of a domain that died, or whose number names another by now. */
  #letGoIfEnded(granter: Granter): void {
    const { domid } = granter.memory.shape;
    const current = this.#granters.get(domid) === granter;
    if (current && granter.memory.alive) return;
    if (current) this.#granters.delete(domid);
    granter.memory.release();
  }

  #newHandle(): number {
    const handle = this.#owners.length;
    if (handle === MAX_HANDLES) return -1;
    if (handle === this.#references.length) {
      const references = new Uint32Array(handle * 2);
      references.set(this.#references);
      this.#references = references;
      const readOnly = new Uint8Array(handle * 2);
      readOnly.set(this.#readOnly);
      this.#readOnly = readOnly;
    }
    this.#owners.push(undefined);
    return handle;
  }

  /** Unmaps everything and lets go of every granter. */
  [Symbol.dispose](): void {
    for (let handle = 0; handle < this.#owners.length; handle++) {
      if (this.#owners[handle] !== undefined) this.unmap(handle);
    }
    invariant(this.#counters.mapped === 0, "a mapping was not counted");
    for (const granter of this.#granters.values()) granter.memory.release();
    this.#granters.clear();
  }
}
