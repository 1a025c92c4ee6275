/**
 * Pages of our own that peers are granted, through /dev/xen/gntalloc (<xen/gntalloc.h>, drivers/xen/gntalloc.c).
 *
 * gntalloc makes a page and its grant in one, for one peer. So a run of pages is ordinary memory to begin with, and each
 * page of it is put in its place when it is granted, with what stood there. To end the access is to put ordinary memory
 * back: a page that the peer still maps stays the kernel's until that ends, and is never ours again.
 *
 * Invariant: pages that are allocated are as many as may be granted, so that whoever was given a page can grant it,
 * unless another process of this domain was quicker.
 */
import { type Ffi, systemError } from "../../io/ffi.ts";
import { MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { systemClock } from "../../util/clock.ts";
import { DOMID_FIRST_RESERVED, type OwnPages, PAGE_SIZE } from "../domain.ts";
import type { MutableCounters } from "../grant-counters.ts";
import type { Devices } from "./devices.ts";
import { IoctlArgument } from "./ioctl-argument.ts";
import {
  AllocGref,
  DeallocGref,
  GNTALLOC_FLAG_WRITABLE,
  IOCTL_GNTALLOC_ALLOC_GREF,
  IOCTL_GNTALLOC_DEALLOC_GREF,
} from "./ioctls.ts";

// <asm-generic/mman-common.h>
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const ORDINARY = MAP_PRIVATE | MAP_ANONYMOUS;

/** Other processes use up the same entries, and nobody tells when they give some back. */
const RETRY_MILLISECONDS = 250;

interface Waiter {
  readonly count: number;
  readonly callback: () => void;
}

export class OwnGrants implements Disposable {
  readonly #devices: Devices;
  readonly #calls: Ffi;
  readonly #counters: MutableCounters;
  readonly #descriptor: number;
  readonly #argument = new IoctlArgument(AllocGref.byteLength);
  readonly #content = Buffer.alloc(PAGE_SIZE);
  readonly #runs = new Set<HostPages>();
  /** Pages that may still be allocated. */
  #left: number;
  #waiters: Waiter[] = [];
  #retry: Disposable | undefined = undefined;

  constructor(devices: Devices, counters: MutableCounters) {
    this.#devices = devices;
    this.#calls = devices.calls;
    this.#counters = counters;
    this.#descriptor = devices.open("gntalloc");
    this.#left = devices.grantLimit();
  }

  get freePages(): number {
    return this.#left;
  }

  allocate(pageCount: number): OwnPages | undefined {
    invariant(Number.isInteger(pageCount) && pageCount > 0, "pages are allocated by whole numbers");
    if (pageCount > this.#left) return undefined;
    const byteLength = pageCount * PAGE_SIZE;
    const calls = this.#calls;
    const address = calls.mmap(0, byteLength, PROT_READ_WRITE, ORDINARY, -1, 0);
    if (address < 0) return undefined;
    const bytes = new Uint8Array(calls.view(address, byteLength));
    const pages: HostPages = new HostPages(
      this,
      new MemoryRegion(bytes, address, () => void calls.munmap(address, byteLength)),
      () => {
        this.#runs.delete(pages);
        this.#left += pageCount;
        this.#serveWaiters();
      },
    );
    this.#runs.add(pages);
    this.#left -= pageCount;
    return pages;
  }

  /** Puts a granted page in the place of `page`, with the same content. Undefined where no entry is free. */
  grant(region: MemoryRegion, page: number, peer: number, readOnly: boolean): Grant | undefined {
    const { words, address } = this.#argument;
    const flags = readOnly ? 0 : GNTALLOC_FLAG_WRITABLE;
    words[AllocGref.domid / 4] = peer | (flags << 16);
    words[AllocGref.count / 4] = 1;
    if (this.#calls.ioctl(this.#descriptor, IOCTL_GNTALLOC_ALLOC_GREF, address) < 0) {
      return undefined;
    }
    const grant = {
      offset: this.#argument.getUint64(AllocGref.index),
      reference: words[AllocGref.reference / 4]!,
    };
    this.#replace(region, page, MAP_SHARED, this.#descriptor, grant.offset);
    this.#counters.granted++;
    return grant;
  }

  /** Puts ordinary memory in the place of a granted page. */
  end(region: MemoryRegion, page: number, { offset }: Grant): void {
    this.#replace(region, page, ORDINARY, -1, 0);
    this.forget(offset);
  }

  /** Gives an unmapped page back to the kernel. */
  forget(offset: number): void {
    this.#argument.setUint64(DeallocGref.index, offset);
    this.#argument.words[DeallocGref.count / 4] = 1;
    this.#calls.ioctl(this.#descriptor, IOCTL_GNTALLOC_DEALLOC_GREF, this.#argument.address);
    this.#counters.granted--;
  }

  /** Maps something else where a page is, and copies what was there. A failure is that of the kernel for want of memory, and
   * leaves a place where nothing is ours any more: nobody may go on with it. */
  #replace(
    region: MemoryRegion,
    page: number,
    flags: number,
    descriptor: number,
    offset: number,
  ): void {
    const start = page * PAGE_SIZE;
    const content = this.#content;
    content.set(region.bytes.subarray(start, start + PAGE_SIZE));
    const address = region.address + start;
    const calls = this.#calls;
    const how = flags | MAP_FIXED;
    const mapped = calls.mmap(address, PAGE_SIZE, PROT_READ_WRITE, how, descriptor, offset);
    if (mapped !== address) throw systemError("mmap", calls.errno(), "/dev/xen/gntalloc");
    region.bytes.set(content, start);
  }

  /** Called later, when entries may be free again: it asks anew. */
  whenFree(count: number, callback: () => void): Disposable {
    const waiter: Waiter = { count, callback };
    this.#waiters.push(waiter);
    this.#retry ??= systemClock.after(count <= this.#left ? 0 : RETRY_MILLISECONDS, () => {
      this.#retry = undefined;
      this.#serveWaiters();
    });
    return {
      [Symbol.dispose]: () => {
        this.#waiters = this.#waiters.filter((other) => other !== waiter);
        if (this.#waiters.length === 0) this.#stopRetrying();
      },
    };
  }

  #stopRetrying(): void {
    this.#retry?.[Symbol.dispose]();
    this.#retry = undefined;
  }

  #serveWaiters(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { callback } of waiters) callback();
  }

  [Symbol.dispose](): void {
    this.#waiters = [];
    this.#stopRetrying();
    for (const pages of this.#runs) pages[Symbol.dispose]();
    this.#devices.close(this.#descriptor);
  }
}

interface Grant {
  /** Byte in the device file. */
  readonly offset: number;
  readonly reference: number;
}

class HostPages implements OwnPages {
  readonly region: MemoryRegion;
  readonly start = 0;
  readonly count: number;
  readonly references: Uint32Array;
  readonly #grants: OwnGrants;
  readonly #ended: () => void;
  readonly #granted: (Grant | undefined)[];
  #disposed = false;

  constructor(grants: OwnGrants, region: MemoryRegion, ended: () => void) {
    this.#grants = grants;
    this.#ended = ended;
    this.region = region;
    this.count = region.bytes.length / PAGE_SIZE;
    this.references = new Uint32Array(this.count);
    this.#granted = new Array<Grant | undefined>(this.count).fill(undefined);
  }

  /** No reference can be chosen: the kernel does. */
  grant(index: number, peer: number, readOnly: boolean, wanted: number = 0): boolean {
    invariant(!this.#disposed && index < this.count, "a page is granted that is not there");
    invariant(this.references[index] === 0, "a page is granted twice");
    invariant(
      Number.isInteger(peer) && peer >= 0 && peer < DOMID_FIRST_RESERVED,
      "a page is granted to a number that is no domain's",
    );
    if (wanted !== 0) return false;
    const grant = this.#grants.grant(this.region, index, peer, readOnly);
    this.#granted[index] = grant;
    this.references[index] = grant?.reference ?? 0;
    return grant !== undefined;
  }

  endAccess(index: number): boolean {
    const grant = this.#granted[index];
    if (grant === undefined) return true;
    this.#grants.end(this.region, index, grant);
    this.#granted[index] = undefined;
    this.references[index] = 0;
    return true;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.region[Symbol.dispose]();
    for (const grant of this.#granted) if (grant !== undefined) this.#grants.forget(grant.offset);
    this.references.fill(0);
    this.#ended();
  }
}
