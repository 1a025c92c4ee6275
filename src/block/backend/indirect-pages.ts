/**
 * The segments of an indirect request, copied once out of the peer's pages (blkback.c: xen_blkbk_parse_indirect).
 *
 * Invariant: only the pages that the count of segments needs are looked at, because some frontends leave old references
 * behind the ones they use; none stays mapped for the request.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import {
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  BLKIF_SEGMENTS_PER_INDIRECT_PAGE,
  indirectPageCount,
  readSegments,
} from "../../wire/blkif.ts";
import type { CopiedPages } from "./copied-pages.ts";
import type { GrantCache } from "./grant-cache.ts";
import type { ValidRequest } from "./request.ts";
import { RequestPages } from "./request-pages.ts";

export class IndirectPages {
  readonly #pages = new RequestPages(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
  /** The same region comes again and again: one view is kept. */
  #region: MemoryRegion | undefined = undefined;
  #words: Uint32Array = new Uint32Array(0);

  /** Fills the `valid.count` segments of `valid`, which are not checked yet; false where a page cannot be had. */
  read(
    cache: GrantCache,
    copies: CopiedPages,
    references: Uint32Array,
    valid: ValidRequest,
  ): boolean {
    const count = indirectPageCount(valid.count);
    const pages = this.#pages;
    const copied = copies.chosen;
    if (copied) pages.list(references, count);
    const had = copied ? copies.begin(pages, true) : cache.map(references, count, true, pages);
    if (!had) return false;
    for (let page = 0; page < count; page++) {
      const words = this.#wordsOf(pages.regions[page]!);
      const from = page * BLKIF_SEGMENTS_PER_INDIRECT_PAGE;
      const entries = Math.min(valid.count - from, BLKIF_SEGMENTS_PER_INDIRECT_PAGE);
      readSegments(words, pages.starts[page]! / 4, valid, from, entries);
    }
    if (copied) copies.end(pages, false);
    else cache.unmap(pages);
    return true;
  }

  #wordsOf(region: MemoryRegion): Uint32Array {
    if (region !== this.#region) {
      const { buffer, byteOffset, byteLength } = region.bytes;
      this.#region = region;
      this.#words = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
    }
    return this.#words;
  }
}
