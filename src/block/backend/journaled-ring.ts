/**
 * A back ring that may keep a journal for a successor, and goes on where a predecessor's stopped. Without a journal it is
 * the ring alone.
 */
import { BackRing } from "../../ring/back-ring.ts";
import type { BlkifLayout, BlkifRequest } from "../../wire/blkif.ts";
import type { RingJournal } from "./ring-journal.ts";

export class JournaledRing extends BackRing {
  /** Entries of the requests that a backend before us took and did not answer, in the order they came. */
  readonly inherited: readonly number[];
  /** A backend before us served this ring. */
  readonly continued: boolean;
  readonly #journal: RingJournal | undefined;

  /** What a backend before us published stays published. Where it left its journal we know what it did not answer; else
   * everything that it did not publish comes again (xen_blkif_map). */
  constructor(bytes: Uint8Array, layout: BlkifLayout, journal: RingJournal | undefined) {
    const kept = journal?.kept === true ? journal : undefined;
    const inherited = kept?.unanswered() ?? [];
    const consumed = kept?.taken ?? 0;
    super(
      bytes,
      layout,
      kept === undefined ? "attach" : { consumed, produced: consumed - inherited.length },
    );
    this.inherited = inherited;
    this.continued = kept !== undefined;
    this.#journal = journal;
    if (kept === undefined) journal?.begin(this.requestsConsumed);
  }

  /** Takes the next of the requests that `pending` counted; `entry` is the one that its response will name. */
  take(entry: number, into: BlkifRequest): void {
    this.consume(into);
    this.#journal?.take(entry, into);
  }

  /** Copies a request that was inherited. */
  readInherited(entry: number, into: BlkifRequest): void {
    this.#journal!.read(entry, into);
  }

  /** Puts the response to the request of an entry, which is free then. */
  answer(entry: number, idLow: number, idHigh: number, operation: number, status: number): void {
    this.respond(idLow, idHigh, operation, status);
    this.#journal?.answered(entry);
  }

  /** There will be no successor. */
  retire(): void {
    this.#journal?.retire();
  }
}
