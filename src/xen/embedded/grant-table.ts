/**
 * The grant table of an embedded domain: its two halves, and the mapping of several pages side by side.
 */
import { invariant } from "../../util/assert.ts";
import {
  type ContiguousMapping,
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCounters,
  GrantMapBatch,
  GrantStatus,
  type GrantTable,
  type OwnPages,
  PAGE_SIZE,
} from "../domain.ts";
import { type MutableCounters, newGrantCounters } from "../grant-counters.ts";
import type { DomainMemory } from "./domain-memory.ts";
import type { Neighbours } from "./neighbours.ts";
import { OwnGrants } from "./own-grants.ts";
import { PeerGrants } from "./peer-grants.ts";
import { mapScattered } from "./scattered-pages.ts";

export class EmbeddedGrantTable implements GrantTable, Disposable {
  readonly grantsPages = true;
  /** To map a page here is to find it. */
  readonly prefersCopy = false;
  readonly #counters: MutableCounters = newGrantCounters();
  readonly #own: OwnGrants;
  readonly #peers: PeerGrants;
  #disposed = false;

  /** `freed` is called when `serveWaiters` has something to do. */
  constructor(memory: DomainMemory, neighbours: Neighbours, freed: () => void) {
    this.#own = new OwnGrants(memory, this.#counters, freed);
    this.#peers = new PeerGrants(memory.shape, neighbours, this.#counters);
  }

  get counters(): GrantCounters {
    return this.#counters;
  }

  /** Entries that can still be granted. */
  get freeEntries(): number {
    return this.#own.freeEntries;
  }

  /** Pages that are neither allocated nor quarantined. */
  get freePages(): number {
    return this.#own.freePages;
  }

  allocate(pageCount: number): OwnPages | undefined {
    invariant(!this.#disposed, "a domain allocates after its end");
    return this.#own.allocate(pageCount);
  }

  map(peer: number, batch: GrantMapBatch): void {
    invariant(!this.#disposed, "a domain maps after its end");
    this.#peers.map(peer, batch);
  }

  unmap(handle: number): GrantStatus {
    return this.#peers.unmap(handle);
  }

  copy(operations: readonly GrantCopy[]): void {
    invariant(!this.#disposed, "a domain copies after its end");
    this.#peers.copy(operations);
  }

  copyPages(peer: number, batch: GrantCopyBatch, toPeer: boolean): void {
    invariant(!this.#disposed, "a domain copies after its end");
    this.#peers.copyPages(peer, batch, toPeer);
  }

  /** Pages that lie apart in the peer's memory are mapped again, side by side, where that is a memfd; elsewhere they
   * answer badVirtualAddress. */
  mapContiguous(
    peer: number,
    references: readonly number[],
    readOnly: boolean,
  ): ContiguousMapping | Exclude<GrantStatus, 0> {
    if (references.length === 0) return GrantStatus.generalError;
    const batch = new GrantMapBatch(references.length);
    batch.count = references.length;
    batch.references.set(references);
    batch.readOnly.fill(readOnly ? 1 : 0);
    this.map(peer, batch);
    using undo = new DisposableStack();
    undo.defer(() => {
      batch.handles.forEach((handle, i) => {
        if (batch.statuses[i] === GrantStatus.okay) this.unmap(handle);
      });
    });
    const failure = batch.statuses.find((status) => status !== GrantStatus.okay);
    if (failure !== undefined) return failure as Exclude<GrantStatus, 0>;
    const start = batch.starts[0]!;
    let bytes = batch.regions[0]!.bytes.subarray(start, start + batch.count * PAGE_SIZE);
    if (batch.starts.some((each, i) => each !== start + i * PAGE_SIZE)) {
      const descriptor = this.#peers.descriptor(batch.handles[0]!);
      const pages =
        descriptor === undefined
          ? undefined
          : mapScattered(descriptor, batch.starts, batch.count, readOnly);
      if (pages === undefined) return GrantStatus.badVirtualAddress;
      bytes = undo.use(pages).bytes;
    }
    const ends = undo.move();
    return { bytes, [Symbol.dispose]: () => ends.dispose() };
  }

  /** Another domain has died: its memory goes with the last mapping of it. */
  forget(domid: number): void {
    this.#peers.forget(domid);
  }

  whenFree(count: number, callback: () => void): Disposable {
    return this.#own.whenFree(count, callback);
  }

  serveWaiters(): void {
    this.#own.serveWaiters();
  }

  /** Unmaps everything; what is granted stays so in memory that is about to be dead. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#peers[Symbol.dispose]();
  }
}
