/**
 * Arrays of struct iovec (readv(2)) in memory that the kernel can read, one array for each slot of an engine, made
 * once.
 *
 * Invariant: an array is not refilled while a call that was given its address is in flight.
 */
import { invariant } from "../util/assert.ts";
import { allocateRegion, type MemoryRegion, type SegmentList } from "./memory.ts";

/** A request of more runs is done in several rounds. 64 pages are 256 KiB at worst, and 1 KiB of table. */
const VECTORS_PER_SLOT = 64;
const BYTES_PER_VECTOR = 16;
const WORDS_PER_VECTOR = 4;
const SLOT_BYTES = VECTORS_PER_SLOT * BYTES_PER_VECTOR;
const TWO_32 = 2 ** 32;

export class VectorTable {
  readonly #region: MemoryRegion;
  readonly #words: Uint32Array;
  /** Of the array that was filled last. */
  count = 0;
  /** Bytes that the array filled last covers. */
  byteLength = 0;
  /** Address that the first vector of the array filled last points to. */
  firstAddress = 0;

  constructor(slots: number) {
    this.#region = allocateRegion(slots * SLOT_BYTES);
    const { buffer, byteOffset, byteLength } = this.#region.bytes;
    this.#words = new Uint32Array(buffer, byteOffset, byteLength / 4);
  }

  addressOf(slot: number): number {
    return this.#region.address + slot * SLOT_BYTES;
  }

  /** Fills the slot's array with the memory of [from, from + length) of the segments, or as much as fits, and sets
   * count, byteLength and firstAddress. */
  fill(slot: number, segments: SegmentList, from: number, length: number): void {
    const words = this.#words;
    const first = (slot * SLOT_BYTES) / 4;
    let word = first;
    const end = word + VECTORS_PER_SLOT * WORDS_PER_VECTOR;
    let left = length;
    for (let i = 0; i < segments.count && left > 0 && word < end; i++) {
      const available = segments.lengths[i]!;
      if (from >= available) {
        from -= available;
        continue;
      }
      const region = segments.regions[i]!;
      const start = segments.starts[i]! + from;
      const bytes = Math.min(available - from, left);
      // The kernel believes addresses: a wrong one would corrupt this process without a word.
      invariant(region.address !== 0, "the memory of a request has no address");
      invariant(!region.disposed, "the memory of a request has been unmapped");
      invariant(start + bytes <= region.bytes.length, "a segment leaves its region");
      const address = region.address + start;
      const high = Math.floor(address / TWO_32);
      if (word === first) this.firstAddress = address;
      words[word] = address - high * TWO_32;
      words[word + 1] = high;
      words[word + 2] = bytes;
      words[word + 3] = 0;
      word += WORDS_PER_VECTOR;
      left -= bytes;
      from = 0;
    }
    this.count = (word - first) / WORDS_PER_VECTOR;
    this.byteLength = length - left;
    invariant(this.byteLength > 0, "a request is longer than its segments");
  }
}
