/**
 * What Xen's grant_table.c would say of version 1 entries, in plain data: who has pinned which entry how often, which
 * references and pages are free, and the status of every operation.
 *
 * An entry's words are read from the table itself, since its granter may write there what it likes; one that it has
 * written into by other ways than its own calls is spoilt, and says nothing about anybody's mappings any more.
 */
import assert from "node:assert/strict";
import { GrantStatus, type OwnPages, PAGE_SIZE } from "../../src/xen/domain.ts";
import type { EmbeddedDomain } from "../../src/xen/embedded/domain.ts";
import {
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_sub_page,
  GTF_type_mask,
  GTF_writing,
  RESERVED_GRANT_ENTRIES,
} from "../../src/xen/embedded/layout.ts";

export const ENTRIES = 24;
export const MAPTRACK = 6;
export const PAGES = 40;

/** One use of an entry, by a mapping or for the time of a copy. */
export interface Pin {
  readonly granter: House;
  readonly reference: number;
  readonly readOnly: boolean;
  /** Page of the granter's memory. */
  readonly frame: number;
}

/** Pages mapped one by one have a handle, those side by side what disposes them. */
export interface Mapping {
  readonly pins: readonly Pin[];
  readonly handle?: number;
  readonly run?: Disposable & { readonly bytes: Uint8Array };
}

/** A domain, alive or not. */
export class House {
  readonly domain: EmbeddedDomain;
  alive = true;
  readonly runs: OwnPages[] = [];
  readonly mappings: Set<Mapping> = new Set();
  /** References that can be granted. */
  readonly free: Set<number> = new Set();
  readonly spoilt: Set<number> = new Set();
  /** Pages that a spoilt entry has named: others may have written to them while they were free and fresh, which a domain can
   * only do to itself. */
  readonly spoiltFrames: Set<number> = new Set();
  /** Pages that were given up. */
  readonly quarantined: Set<number> = new Set();
  /** Who waits for how many entries, in order; called back when it is there no more. */
  waiters: { readonly count: number; called: boolean; readonly end: Disposable }[] = [];
  readonly #pages: number;

  constructor(domain: EmbeddedDomain) {
    this.domain = domain;
    this.#pages = domain.grants.freePages;
    for (let each = RESERVED_GRANT_ENTRIES; each < ENTRIES; each++) this.free.add(each);
  }

  get id(): number {
    return this.domain.id;
  }

  get mapped(): number {
    let count = 0;
    for (const { pins } of this.mappings) count += pins.length;
    return count;
  }

  /** Pages that are allocated, in order. */
  pages(): { run: OwnPages; index: number; reference: number }[] {
    return this.runs.flatMap((run) =>
      Array.from(run.references, (reference, index) => ({ run, index, reference })),
    );
  }

  word(reference: number): number {
    return this.domain.memory.grantWords[reference * 2]!;
  }

  frame(reference: number): number {
    return this.domain.memory.grantWords[reference * 2 + 1]!;
  }

  inUse(reference: number): boolean {
    return (this.word(reference) & (GTF_reading | GTF_writing)) !== 0;
  }

  /** What pinning the entry once more would say; a pin where it is allowed. `held` are those that this domain has. */
  pin(
    granter: House | undefined,
    reference: number,
    readOnly: boolean,
    held: readonly Pin[],
    mapping: boolean,
  ): Pin | GrantStatus {
    if (granter === undefined) return GrantStatus.badDomain;
    if (!(reference < ENTRIES)) return GrantStatus.badGrantReference;
    const same = held.filter((pin) => pin.granter === granter && pin.reference === reference);
    const [pinned] = same;
    const word = granter.word(reference);
    const mask = mapping ? GTF_type_mask | GTF_sub_page : GTF_type_mask;
    if (pinned === undefined) {
      if ((word & mask) !== GTF_permit_access || word >>> 16 !== this.id) {
        return GrantStatus.generalError;
      }
    }
    const firstWriter = !readOnly && same.every((pin) => pin.readOnly);
    if (firstWriter && (word & GTF_readonly) !== 0) return GrantStatus.generalError;
    const frame = pinned?.frame ?? granter.frame(reference);
    const { firstFrame, pageCount } = granter.domain.memory.shape;
    if (frame < firstFrame || frame >= pageCount) return GrantStatus.badPage;
    return { granter, reference, readOnly, frame };
  }

  get held(): Pin[] {
    return [...this.mappings].flatMap(({ pins }) => pins);
  }

  /** Whether the table of this domain says what the model does. `pins` are those of all domains. */
  check(pins: readonly Pin[]): void {
    const { grants } = this.domain;
    const marks = new Uint8Array(ENTRIES);
    for (const { granter, reference, readOnly } of pins) {
      if (granter === this) marks[reference]! |= GTF_reading | (readOnly ? 0 : GTF_writing);
    }
    for (let reference = 0; reference < ENTRIES; reference++) {
      const seen = this.word(reference) & (GTF_reading | GTF_writing);
      if (seen === marks[reference] || this.spoilt.has(reference)) continue;
      assert.fail(`entry ${reference} of domain ${this.id} is marked ${seen}`);
    }
    if (!this.alive) return;
    const pages = this.pages();
    const granted = pages.filter(({ reference }) => reference !== 0).length;
    const { mapped, granted: counted, quarantined } = grants.counters;
    const counts = { mapped: this.mapped, counted: granted, quarantined: this.quarantined.size };
    assert.deepEqual({ mapped, counted, quarantined }, counts);
    assert.equal(grants.freeEntries, this.free.size, "free entries");
    assert.equal(this.free.size + granted + quarantined, ENTRIES - RESERVED_GRANT_ENTRIES);
    assert.equal(grants.freePages + pages.length + quarantined, this.#pages, "free pages");
  }

  /** Pages of this domain that someone maps by an entry that is as it was granted, and those that were given up. */
  untouchable(pins: readonly Pin[]): Set<number> {
    const frames = new Set(this.quarantined);
    for (const { granter, reference, frame } of pins) {
      if (granter === this && !this.spoilt.has(reference)) frames.add(frame);
    }
    return frames;
  }

  bytes(frame: number, offset = 0, length: number = PAGE_SIZE): Uint8Array {
    const start = frame * PAGE_SIZE + offset;
    return this.domain.memory.bytes.subarray(start, start + length);
  }
}
