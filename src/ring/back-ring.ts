/**
 * The backend's end of a ring: takes requests, puts responses. Answers to the BACK_RING_* and RING_*_REQUESTS macros of
 * <xen/io/ring.h>; its mirror image is front-ring.ts.
 *
 * Invariant: produced <= consumed <= seen <= produced + size, in arithmetic modulo 2^32, whatever the frontend writes.
 * Only `seen` comes from shared memory, and not before it was checked; nothing that we wrote there is read back.
 */
import { invariant } from "../util/assert.ts";
import { type BlkifLayout, type BlkifRequest, readRequest, writeResponse } from "../wire/blkif.ts";
import { REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD } from "../wire/shared-ring.ts";
import { type BackRingIndexes, RingMemory, type RingStart } from "./ring-memory.ts";

export class BackRing {
  /** Slots, a power of two. */
  readonly size: number;
  readonly #memory: RingMemory;
  /** Requests published, as last seen and found possible. */
  #seen: number;
  /** Requests consumed (req_cons). */
  #consumed: number;
  /** Responses produced (rsp_prod_pvt). */
  #produced: number;
  /** Responses published. */
  #published: number;
  #broken = false;

  /** `attach` (BACK_RING_ATTACH) goes on at the responses published so far: requests that a former backend took and
   * never answered come again. On a fresh ring it is the same as `fresh`. With indexes it goes on there, and publishes
   * what a former backend had put. */
  constructor(
    bytes: Uint8Array,
    layout: BlkifLayout,
    start: RingStart | BackRingIndexes = "fresh",
  ) {
    this.#memory = new RingMemory(bytes, layout);
    this.size = this.#memory.size;
    const { indexes } = this.#memory;
    const attached = start === "attach" ? Atomics.load(indexes, RSP_PROD) : 0;
    const { consumed, produced } =
      typeof start === "object" ? start : { consumed: attached, produced: attached };
    this.#seen = consumed | 0;
    this.#consumed = consumed | 0;
    this.#produced = produced | 0;
    this.#published = produced | 0;
    if (typeof start === "object") Atomics.store(indexes, RSP_PROD, this.#produced);
  }

  /** The frontend's index was impossible. Latched: what was counted before can still be consumed and answered, and
   * nothing more is counted. */
  get broken(): boolean {
    return this.#broken;
  }

  /** Free-running, modulo 2^32, as all counters here. */
  get requestsConsumed(): number {
    return this.#consumed >>> 0;
  }

  get responsesProduced(): number {
    return this.#produced >>> 0;
  }

  /** Requests published and not consumed, or -1 when the ring is broken: the frontend's index went back, or is further
   * ahead of the responses than the ring has slots (RING_REQUEST_PROD_OVERFLOW). */
  pending(): number {
    if (this.#broken) return -1;
    const { indexes } = this.#memory;
    // Only what is new has to be ordered before the slots that it is about, and an atomic load is a call.
    if (indexes[REQ_PROD] === this.#seen) return (this.#seen - this.#consumed) | 0;
    return this.#count(Atomics.load(indexes, REQ_PROD));
  }

  #count(published: number): number {
    const count = (published - this.#consumed) >>> 0;
    const counted = (this.#seen - this.#consumed) | 0;
    const room = this.size - ((this.#consumed - this.#produced) | 0);
    if (count < counted || count > room) {
      this.#broken = true;
      return -1;
    }
    this.#seen = published;
    return count;
  }

  /** Whether one more request could be answered; false when all slots hold requests that we have consumed and not
   * answered (RING_REQUEST_CONS_OVERFLOW). */
  canConsume(): boolean {
    return ((this.#consumed - this.#produced) | 0) < this.size;
  }

  /** Takes the next of the requests that `pending` counted. */
  consume(into: BlkifRequest): void {
    invariant(this.#consumed !== this.#seen, "consuming a request that was not counted");
    const memory = this.#memory;
    readRequest(memory.layout, memory.words, memory.slot(this.#consumed), into);
    this.#consumed = (this.#consumed + 1) | 0;
  }

  /** Puts a response, which `publish` will show. There must be a consumed request that it answers. */
  respond(idLow: number, idHigh: number, operation: number, status: number): void {
    invariant(this.#produced !== this.#consumed, "a response without a request");
    const memory = this.#memory;
    const slot = memory.slot(this.#produced);
    writeResponse(memory.layout, memory.words, slot, idLow, idHigh, operation, status);
    this.#produced = (this.#produced + 1) | 0;
  }

  /** Shows the responses put so far; true when the frontend asked to be notified of one of them
   * (RING_PUSH_RESPONSES_AND_CHECK_NOTIFY). */
  publish(): boolean {
    const before = this.#published;
    const after = this.#produced;
    if (before === after) return false;
    this.#published = after;
    Atomics.store(this.#memory.indexes, RSP_PROD, after);
    const event = Atomics.load(this.#memory.indexes, RSP_EVENT);
    return (after - event) >>> 0 < (after - before) >>> 0;
  }

  /** Before waiting for an event: asks to be notified of the next request, and says whether one came meanwhile
   * (RING_FINAL_CHECK_FOR_REQUESTS). False on a broken ring, so that nobody spins on it. */
  finalCheck(): boolean {
    const count = this.pending();
    if (count !== 0) return count > 0;
    const { indexes } = this.#memory;
    Atomics.store(indexes, REQ_EVENT, (this.#consumed + 1) | 0);
    return this.#count(Atomics.load(indexes, REQ_PROD)) > 0;
  }
}
