/**
 * The mapping half of a grant table: what Xen does in grant_table.c for map_grant_ref, unmap_grant_ref and copy, run
 * by the domain that asks, on the granter's own table.
 *
 * A grant names the one domain that may use it, so who counts the uses is that domain alone (granter.ts). Invariants:
 * the pins of all entries are the handles given out; an operation that fails changes nothing; nothing read from the
 * granter's table is used before its bounds were checked. What one granter has us map takes nothing from the others.
 *
 * A page that is mapped read-only is mapped so where the granter's memory is a memfd: a write is SIGSEGV, or EFAULT in
 * a system call, as with gntdev. Between the domains of one process the mapper is trusted to keep to it.
 */
import { invariant } from "../../util/assert.ts";
import { copyBytes } from "../../util/copy-bytes.ts";
import {
  DOMID_SELF,
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCopyEnd,
  type GrantMapBatch,
  GrantStatus,
  PAGE_SIZE,
} from "../domain.ts";
import type { MutableCounters } from "../grant-counters.ts";
import { Granter } from "./granter.ts";
import type { DomainShape } from "./layout.ts";
import type { Neighbours } from "./neighbours.ts";

/** Mappings of one granter's pages at a time: as many as its table has entries by default, or 128 MiB in flight.
 * Whoever names the same entries in thousands of requests finds noSpace here. */
export const MAX_MAPPINGS_PER_PEER = 32768;

const FIRST_HANDLES = 256;

export class PeerGrants {
  readonly #self: DomainShape;
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
    self: DomainShape,
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
    const status = granter.pin(reference, this.#self.domid, readOnly, true);
    batch.statuses[i] = status;
    if (status !== GrantStatus.okay) {
      this.#freeHandles.push(handle);
      return;
    }
    this.#owners[handle] = granter;
    this.#references[handle] = reference;
    this.#readOnly[handle] = readOnly ? 1 : 0;
    granter.mapped++;
    this.#counters.mapped++;
    this.#counters.maps++;
    batch.handles[i] = handle;
    const { memory } = granter;
    batch.regions[i] = readOnly ? memory.readOnlyRegion : memory.region;
    batch.starts[i] = granter.start(reference);
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

  /** The memfd that the page of a handle lies in; undefined where it is memory of this process alone. */
  descriptor(handle: number): number | undefined {
    return this.#owners[handle]?.memory.descriptor;
  }

  copy(operations: readonly GrantCopy[]): void {
    for (const operation of operations) operation.status = this.#copyOne(operation);
  }

  copyPages(peer: number, batch: GrantCopyBatch, toPeer: boolean): void {
    const granter = this.#granter(peer === DOMID_SELF ? this.#self.domid : peer);
    for (let i = 0; i < batch.count; i++) {
      batch.statuses[i] =
        granter === undefined ? GrantStatus.badDomain : this.#copyPart(granter, batch, i, toPeer);
    }
  }

  #copyPart(granter: Granter, batch: GrantCopyBatch, i: number, toPeer: boolean): GrantStatus {
    const reference = batch.references[i]!;
    const offset = batch.offsets[i]!;
    const length = batch.lengths[i]!;
    if (offset + length > PAGE_SIZE) return GrantStatus.badCopyArgument;
    const status = granter.pin(reference, this.#self.domid, !toPeer, false);
    if (status !== GrantStatus.okay) return status;
    const { bytes } = granter.memory;
    const at = granter.start(reference) + offset;
    const image = batch.regions[i]!.bytes;
    const there = batch.starts[i]! + offset;
    if (toPeer) copyBytes(image, there, bytes, at, length);
    else copyBytes(bytes, at, image, there, length);
    granter.unpin(reference, !toPeer);
    this.#counters.copies++;
    return GrantStatus.okay;
  }

  /** The checks in Xen's order: both domains, the source's grant, the destination's, then the bounds. */
  #copyOne({ source, destination, length }: GrantCopy): GrantStatus {
    const from = this.#copyGranter(source);
    const to = this.#copyGranter(destination);
    if (from === undefined || to === undefined) return GrantStatus.badDomain;
    const claimed = claim(from, source, this.#self.domid, true);
    if (claimed !== GrantStatus.okay) return claimed;
    let status = claim(to, destination, this.#self.domid, false);
    if (status === GrantStatus.okay) {
      status = move(from, source, to, destination, length);
      if (to instanceof Granter && isGrant(destination)) to.unpin(destination.reference, false);
    }
    if (from instanceof Granter && isGrant(source)) from.unpin(source.reference, true);
    if (status === GrantStatus.okay) this.#counters.copies++;
    return status;
  }

  /** "own" where the end is memory of our own; undefined where there is no such domain. */
  #copyGranter(end: GrantCopyEnd): Granter | "own" | undefined {
    if (!isGrant(end)) return "own";
    return this.#granter(end.peer === DOMID_SELF ? this.#self.domid : end.peer);
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

  /** The domain has died, and nobody will look for it again: without mappings of its pages, nothing keeps its memory. */
  forget(domid: number): void {
    const known = this.#granters.get(domid);
    if (known === undefined || known.mapped > 0) return;
    this.#granters.delete(domid);
    known.memory.release();
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
    if (handle === this.#self.maptrackEntries) return -1;
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

type GrantEnd = Exclude<GrantCopyEnd, Uint8Array>;

function isGrant(end: GrantCopyEnd): end is GrantEnd {
  return !(end instanceof Uint8Array);
}

function claim(
  granter: Granter | "own",
  end: GrantCopyEnd,
  self: number,
  readOnly: boolean,
): GrantStatus {
  if (granter === "own" || !isGrant(end)) return GrantStatus.okay;
  return granter.pin(end.reference, self, readOnly, false);
}

/** Copies between two ends that are claimed; badCopyArgument where `length` leaves one. */
function move(
  from: Granter | "own",
  source: GrantCopyEnd,
  to: Granter | "own",
  destination: GrantCopyEnd,
  length: number,
): GrantStatus {
  if (length >>> 0 !== length) return GrantStatus.badCopyArgument;
  const read = bytesOf(from, source, length);
  const written = bytesOf(to, destination, length);
  if (read === undefined || written === undefined) return GrantStatus.badCopyArgument;
  // `set` copies as memmove does, so that ends which overlap are no matter.
  if (length > 0) written.set(read);
  return GrantStatus.okay;
}

function bytesOf(
  granter: Granter | "own",
  end: GrantCopyEnd,
  length: number,
): Uint8Array | undefined {
  if (granter === "own" || !isGrant(end)) {
    const own = end as Uint8Array;
    return length <= own.length ? own.subarray(0, length) : undefined;
  }
  const { offset, reference } = end;
  if (offset >>> 0 !== offset || offset + length > PAGE_SIZE) return undefined;
  const start = granter.start(reference) + offset;
  return granter.memory.bytes.subarray(start, start + length);
}
