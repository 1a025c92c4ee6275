/**
 * The grant table of a domain on Xen, as Linux lends it to a process. Each half opens its device when it is first used: a
 * backend has no need of gntalloc, nor has a frontend of gntdev.
 */
import { invariant } from "../../util/assert.ts";
import {
  type ContiguousMapping,
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCounters,
  type GrantMapBatch,
  GrantStatus,
  type GrantTable,
  type OwnPages,
} from "../domain.ts";
import { type MutableCounters, newGrantCounters } from "../grant-counters.ts";
import type { Devices } from "./devices.ts";
import { GrantCopier } from "./grant-copy.ts";
import { OwnGrants } from "./own-grants.ts";
import { PeerGrants } from "./peer-grants.ts";

export class HostGrantTable implements GrantTable, Disposable {
  readonly grantsPages = false;
  /** Of a page or of 256, the largest request: the figures are in docs/xen-host.md. */
  readonly prefersCopy = true;
  readonly #devices: Devices;
  /** None is ever quarantined: pages that a peer keeps are the kernel's, which keeps them from everybody. */
  readonly #counters: MutableCounters = newGrantCounters();
  #own: OwnGrants | undefined = undefined;
  #peers: PeerGrants | undefined = undefined;
  #copier: GrantCopier | undefined = undefined;
  #disposed = false;

  constructor(devices: Devices) {
    this.#devices = devices;
  }

  get counters(): GrantCounters {
    return this.#counters;
  }

  #ownGrants(): OwnGrants {
    invariant(!this.#disposed, "a domain grants after its end");
    this.#own ??= new OwnGrants(this.#devices, this.#counters);
    return this.#own;
  }

  #peerGrants(): PeerGrants {
    invariant(!this.#disposed, "a domain maps after its end");
    this.#peers ??= new PeerGrants(this.#devices, this.#counters);
    return this.#peers;
  }

  get freePages(): number {
    return this.#ownGrants().freePages;
  }

  /** A page takes its entry when it is allocated, as far as can be told. */
  get freeEntries(): number {
    return this.freePages;
  }

  allocate(pageCount: number): OwnPages | undefined {
    return this.#ownGrants().allocate(pageCount);
  }

  map(peer: number, batch: GrantMapBatch): void {
    this.#peerGrants().map(peer, batch);
  }

  unmap(handle: number): GrantStatus {
    return this.#peers?.unmap(handle) ?? GrantStatus.badHandle;
  }

  mapContiguous(
    peer: number,
    references: readonly number[],
    readOnly: boolean,
  ): ContiguousMapping | Exclude<GrantStatus, 0> {
    return this.#peerGrants().mapContiguous(peer, references, readOnly);
  }

  #grantCopier(): GrantCopier {
    const { descriptor } = this.#peerGrants();
    this.#copier ??= new GrantCopier(this.#devices.calls, descriptor, this.#counters);
    return this.#copier;
  }

  copy(operations: readonly GrantCopy[]): void {
    this.#grantCopier().copy(operations);
  }

  copyPages(peer: number, batch: GrantCopyBatch, toPeer: boolean): void {
    this.#grantCopier().copyPages(peer, batch, toPeer);
  }

  whenFree(count: number, callback: () => void): Disposable {
    return this.#ownGrants().whenFree(count, callback);
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#peers?.[Symbol.dispose]();
    this.#own?.[Symbol.dispose]();
  }
}
