/**
 * Requests whose data are copied between the peer's pages and memory of ours, where the store works on them, instead of
 * being mapped (GNTTABOP_copy; xen-blkback has no such way, QEMU's xen-block has no other by default).
 *
 * Invariants: what is copied in is copied once, before anybody looks at it; each status is looked at, and a request of which
 * any part could not be copied has failed; an image shows a peer nothing but what its own requests brought.
 */
import { allocateRegion, type MemoryRegion } from "../../io/memory.ts";
import { invariant } from "../../util/assert.ts";
import { BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST } from "../../wire/blkif.ts";
import { GrantStatus, type GrantTable, PAGE_SIZE } from "../../xen/domain.ts";
import { type GrantUse, MAX_INDIRECT_SEGMENTS } from "../features.ts";
import type { RequestPages } from "./request-pages.ts";

export interface CopiedPagesOptions {
  readonly grants: GrantTable;
  readonly peer: number;
  readonly use: GrantUse;
  /** Pages of requests in flight; of a single request there may be more. */
  readonly bufferPages: number;
}

export class CopiedPages implements Disposable {
  /** Whether requests are to be copied. */
  readonly chosen: boolean;
  readonly #grants: GrantTable;
  readonly #peer: number;
  /** A stack of pages: the lowest is on top, so that neighbours taken in order become one segment. */
  readonly #free: Uint32Array;
  #freeCount: number;
  /** Made when the first request is copied; only what was used is resident. */
  #region: MemoryRegion | undefined = undefined;

  constructor({ grants, peer, use, bufferPages }: CopiedPagesOptions) {
    this.#grants = grants;
    this.#peer = peer;
    this.chosen = use === "auto" ? grants.prefersCopy : use === "copy";
    const needed = Math.max(bufferPages, MAX_INDIRECT_SEGMENTS);
    this.#freeCount = this.chosen ? needed + BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST : 0;
    this.#free = Uint32Array.from({ length: this.#freeCount }, (_, i) => this.#freeCount - 1 - i);
  }

  /** Pages of requests in flight. */
  get used(): number {
    return this.#free.length - this.#freeCount;
  }

  /** Finds memory for the pages that are listed, and copies them there where they are to be read; false, with nothing
   * taken, where the peer does not let us. */
  begin(pages: RequestPages, read: boolean): boolean {
    invariant(pages.count <= this.#freeCount, "a request is copied for which there is no room");
    this.#region ??= allocateRegion(this.#free.length * PAGE_SIZE);
    for (let i = 0; i < pages.count; i++) {
      pages.regions[i] = this.#region;
      pages.starts[i] = this.#free[--this.#freeCount]! * PAGE_SIZE;
    }
    pages.copied = true;
    if (!read || this.#copy(pages, false)) return true;
    this.#give(pages);
    return false;
  }

  /** Takes the memory back, and where it was `written` copies it to the peer's pages before; false where he does not let
   * us. */
  end(pages: RequestPages, written: boolean): boolean {
    const copied = !written || this.#copy(pages, true);
    this.#give(pages);
    return copied;
  }

  #copy(pages: RequestPages, toPeer: boolean): boolean {
    this.#grants.copyPages(this.#peer, pages, toPeer);
    for (let i = 0; i < pages.count; i++) if (pages.statuses[i] !== GrantStatus.okay) return false;
    return true;
  }

  #give(pages: RequestPages): void {
    for (let i = pages.count - 1; i >= 0; i--) {
      this.#free[this.#freeCount++] = pages.starts[i]! / PAGE_SIZE;
      pages.regions[i] = undefined;
    }
    pages.copied = false;
    pages.count = 0;
  }

  /** No request may be in flight. */
  [Symbol.dispose](): void {
    invariant(this.used === 0, "a request in flight is still copied");
    this.#region?.[Symbol.dispose]();
    this.#region = undefined;
  }
}
