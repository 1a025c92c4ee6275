/**
 * Another domain's grant entries as their user sees them: Xen's active entries (grant_table.c: _set_status_v1,
 * active_grant_entry), kept by the one domain that an entry names.
 *
 * As in Xen, type, domain and frame are read when an entry is pinned that was not, and hold until its last pin goes:
 * what the granter writes there meanwhile changes nothing. Invariants: GTF_reading is set while an entry has pins,
 * GTF_writing while it has writers; a pin that fails leaves counts and marks as they were.
 */
import { GrantStatus, PAGE_SIZE } from "../domain.ts";
import type { DomainMemory } from "./domain-memory.ts";
import {
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_sub_page,
  GTF_type_mask,
  GTF_writing,
  UNSTABLE_ENTRY_TRIES,
} from "./layout.ts";

/** Pins of one entry for reading, and as many for writing: Xen counts them in bytes and stops at the top bit. */
export const MAX_PINS_PER_ENTRY = 128;

export class Granter {
  readonly memory: DomainMemory;
  readonly #readers: Uint8Array;
  readonly #writers: Uint8Array;
  /** Of the pinned entries. */
  readonly #frames: Uint32Array;
  /** Handles that name this granter. */
  mapped = 0;

  constructor(memory: DomainMemory) {
    const { grantEntries } = memory.shape;
    this.memory = memory.retain();
    this.#readers = new Uint8Array(grantEntries);
    this.#writers = new Uint8Array(grantEntries);
    this.#frames = new Uint32Array(grantEntries);
  }

  /** One use of the entry more, by domain `self`: a mapping or a copy. */
  pin(reference: number, self: number, readOnly: boolean, mapping: boolean): GrantStatus {
    if (!(reference < this.#readers.length)) return GrantStatus.badGrantReference;
    const readers = this.#readers[reference]!;
    const writers = this.#writers[reference]!;
    const pinned = readers + writers > 0;
    if ((readOnly ? readers : writers) === MAX_PINS_PER_ENTRY) return GrantStatus.generalError;
    if (!pinned || (!readOnly && writers === 0)) {
      if (!this.#mark(reference, self, readOnly, pinned, mapping)) return GrantStatus.generalError;
      if (!pinned && !this.#readFrame(reference)) {
        this.#clear(reference, GTF_reading | (readOnly ? 0 : GTF_writing));
        return GrantStatus.badPage;
      }
    }
    if (readOnly) this.#readers[reference] = readers + 1;
    else this.#writers[reference] = writers + 1;
    return GrantStatus.okay;
  }

  /** Whether the entry permits the use, and says now that it is used. */
  #mark(
    reference: number,
    self: number,
    readOnly: boolean,
    pinned: boolean,
    mapping: boolean,
  ): boolean {
    const words = this.memory.grantWords;
    const wanted = readOnly ? GTF_reading : GTF_reading | GTF_writing;
    // Xen looks at GTF_sub_page for mappings alone; a copy by a version 1 entry has the whole page.
    const looked = mapping ? GTF_type_mask | GTF_sub_page : GTF_type_mask;
    for (let tries = 0; tries < UNSTABLE_ENTRY_TRIES; tries++) {
      const word = Atomics.load(words, reference * 2);
      const type = word & looked;
      if (!pinned && (type !== GTF_permit_access || word >>> 16 !== self)) return false;
      if (!readOnly && (word & GTF_readonly) !== 0) return false;
      const marked = (word | wanted) >>> 0;
      if (Atomics.compareExchange(words, reference * 2, word, marked) === word) return true;
    }
    return false;
  }

  /** Whether the entry names an ordinary page. */
  #readFrame(reference: number): boolean {
    const frame = Atomics.load(this.memory.grantWords, reference * 2 + 1);
    const { firstFrame, pageCount } = this.memory.shape;
    this.#frames[reference] = frame;
    return frame >= firstFrame && frame < pageCount;
  }

  #clear(reference: number, marks: number): void {
    Atomics.and(this.memory.grantHalves, reference * 4, ~marks & 0xffff);
  }

  unpin(reference: number, readOnly: boolean): void {
    if (readOnly) this.#readers[reference]!--;
    else this.#writers[reference]!--;
    const writers = this.#writers[reference]!;
    const lastWriter = !readOnly && writers === 0 ? GTF_writing : 0;
    const last = this.#readers[reference]! + writers === 0 ? GTF_reading : 0;
    if ((lastWriter | last) !== 0) this.#clear(reference, lastWriter | last);
  }

  /** Byte of the page that a pinned entry names. */
  start(reference: number): number {
    return this.#frames[reference]! * PAGE_SIZE;
  }
}
