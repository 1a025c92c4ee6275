/**
 * The order between the requests of one vbd, whichever of its rings they came on (blkback.c: xen_blk_drain_io; NetBSD's
 * xbdback drains before a flush too).
 *
 * Invariants: a flush is given to the store when everything that changes the disk and was taken before it has ended; it
 * holds nothing back that comes after it. A barrier is alone: it begins when all else has ended, and until it has ended
 * no ring takes a request. Nobody waits for a flush that came later, so that waiting ends.
 */
import { Fifo } from "../../util/fifo.ts";
import type { PendingRequest } from "./pending-request.ts";

/** A ring, to the others of its vbd. */
export interface DrainMember {
  /** All that the flush or barrier waited for has ended. */
  drained(slot: PendingRequest): void;
  /** Requests may be taken again. */
  resume(): void;
}

export class Drain {
  readonly #members = new Set<DrainMember>();
  /** Flushes that wait, in the order they came: what an earlier one waits for, a later one waits for too. */
  readonly #waiting = new Fifo<PendingRequest>();
  #sequence = 0;
  #inFlight = 0;
  #changes = 0;
  #barrier: PendingRequest | undefined = undefined;

  join(member: DrainMember): void {
    this.#members.add(member);
  }

  leave(member: DrainMember): void {
    this.#members.delete(member);
  }

  /** A barrier waits, or runs: take no requests. */
  get barred(): boolean {
    return this.#barrier !== undefined;
  }

  /** A request begins; `changes` where it may change the disk. */
  begin(slot: PendingRequest, changes: boolean): void {
    slot.sequence = ++this.#sequence;
    slot.changesBefore = this.#changes;
    slot.changes = changes;
    this.#inFlight++;
    if (changes) this.#changes++;
  }

  /** The flush `slot`, which has begun, is drained when its time has come: at once, or later. */
  flush(slot: PendingRequest): void {
    if (slot.changesBefore === 0) slot.member.drained(slot);
    else this.#waiting.push(slot);
  }

  /** As `flush`, alone. */
  bar(slot: PendingRequest): void {
    this.#barrier = slot;
    if (this.#inFlight === 1) slot.member.drained(slot);
  }

  /** A request has ended. */
  end(slot: PendingRequest): void {
    this.#inFlight--;
    if (slot.changes) this.#changeEnded(slot.sequence);
    if (this.#barrier === undefined) return;
    if (this.#barrier === slot) {
      this.#barrier = undefined;
      for (const member of this.#members) member.resume();
    } else if (this.#inFlight === 1) this.#barrier.member.drained(this.#barrier);
  }

  #changeEnded(sequence: number): void {
    this.#changes--;
    for (let flush = this.#waiting.peek(); flush !== undefined; flush = flush.next) {
      if (flush.sequence > sequence) flush.changesBefore--;
    }
    for (let flush = this.#waiting.peek(); flush?.changesBefore === 0; ) {
      this.#waiting.shift();
      flush.member.drained(flush);
      flush = this.#waiting.peek();
    }
  }
}
