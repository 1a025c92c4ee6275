/**
 * The connection of a ring as the journal keeps it: a daemon that begins anew goes on with it where this one was.
 *
 * Invariant: at the end of a turn the journal has what was read of the ring, what of that is still to be carried out,
 * and every answer to what was; and it has what goes to the ring before the first byte does. So a request is carried
 * out once and answered once, whenever the daemon is killed. Events are only known to wait: see `behind`.
 */
import { encodeXenStoreMessage, type XenStoreMessage } from "../../wire/xenstore.ts";
import type { Journal } from "./journal.ts";
import type { KeptWatch, RingState, SentState } from "./state-operations.ts";

/** The connection, as it is at the end of a turn. */
export interface RingSource {
  /** Where the ring has been read to, and written to. */
  readonly consumed: number;
  readonly produced: number;
  /** What was sent and is not in the ring yet. */
  readonly unsent: Uint8Array;
  /** What was read and is not a whole request yet, or waits for its turn. */
  readonly rest: Uint8Array;
  /** Events wait that were not sent. */
  readonly behind: boolean;
  readonly transactions: readonly number[];
}

export class KeptRing {
  readonly domid: number;
  readonly #journal: Journal;
  readonly #source: RingSource;
  /** Answers that wait; the first `#recorded` are in the journal. */
  readonly #answers: XenStoreMessage[] = [];
  #recorded = 0;

  constructor(domid: number, journal: Journal, source: RingSource) {
    this.domid = domid;
    this.#journal = journal;
    this.#source = source;
    journal.rings.add(this);
  }

  /** Something was read, or carried out, or waits. */
  changed(): void {
    this.#journal.touch(this);
  }

  answered(message: XenStoreMessage): void {
    this.#answers.push(message);
    this.changed();
  }

  /** These `bytes` are sent next, with the first `answers` of those that wait. */
  sending(bytes: Uint8Array, answers: number): void {
    const known = Math.min(answers, this.#recorded);
    this.#recorded -= known;
    this.#answers.splice(0, answers);
    this.#journal.sent(this.domid, { answers: known, start: this.#source.produced, bytes });
    this.changed();
  }

  watched(watch: KeptWatch): void {
    this.#journal.watch(this.domid, watch);
  }

  unwatched(path: string, token: string): void {
    this.#journal.unwatch(this.domid, path, token);
  }

  /** The connection ended. Idempotent. */
  ended(): void {
    if (this.#journal.rings.delete(this)) this.#journal.disconnect(this);
  }

  /** What the journal does not have yet. */
  news(): RingState {
    const { consumed, rest, behind, transactions } = this.#source;
    const answers = this.#answers.slice(this.#recorded).map(encodeXenStoreMessage);
    this.#recorded = this.#answers.length;
    return { consumed, rest, behind, transactions, answers };
  }

  /** All of it, when there are no news. */
  whole(): { ring: RingState; sent: SentState } {
    const { produced: start, unsent: bytes } = this.#source;
    const ring = { ...this.news(), answers: this.#answers.map(encodeXenStoreMessage) };
    return { ring, sent: { answers: 0, start, bytes } };
  }
}
