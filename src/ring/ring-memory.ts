/**
 * What both ends of a ring see of its pages. Shared indexes are touched by front-ring.ts and back-ring.ts alone, and
 * only through Atomics, which also order the plain accesses to the slots around them.
 */
import { invariant } from "../util/assert.ts";
import type { BlkifLayout } from "../wire/blkif.ts";
import {
  MAX_RING_PAGES,
  RING_HEADER_WORDS,
  RING_PAGE_SIZE,
  ringSize,
} from "../wire/shared-ring.ts";

/** `fresh` begins at index 0; `attach` goes on where the pages say that the former owner of this end stopped. */
export type RingStart = "fresh" | "attach";

/** Where a backend's successor goes on, from its own notes: free-running indexes. */
export interface BackRingIndexes {
  readonly consumed: number;
  /** Responses that stand in the ring, whether they were published or not. */
  readonly produced: number;
}

export class RingMemory {
  readonly layout: BlkifLayout;
  /** Slots, a power of two. */
  readonly size: number;
  /** The four indexes. Signed, so that they and all differences of them stay small integers. */
  readonly indexes: Int32Array;
  readonly words: Uint32Array;
  readonly #slotWords: number;

  /** `bytes` are 1 to MAX_RING_PAGES whole pages side by side, aligned to 4 bytes. */
  constructor(bytes: Uint8Array, layout: BlkifLayout) {
    const pages = bytes.byteLength / RING_PAGE_SIZE;
    invariant(
      Number.isInteger(pages) && pages >= 1 && pages <= MAX_RING_PAGES,
      `a ring of ${pages} pages`,
    );
    this.layout = layout;
    this.size = ringSize(bytes.byteLength, layout.requestSize);
    this.indexes = new Int32Array(bytes.buffer, bytes.byteOffset, RING_HEADER_WORDS);
    this.words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    this.#slotWords = layout.requestSize / 4;
  }

  /** First word of the slot of a free-running index. */
  slot(index: number): number {
    return RING_HEADER_WORDS + (index & (this.size - 1)) * this.#slotWords;
  }
}
