/**
 * The frontend's end of a ring: puts requests, takes responses. Answers to the FRONT_RING_* and RING_*_RESPONSES macros
 * of <xen/io/ring.h>; its mirror image is back-ring.ts.
 *
 * Invariant: consumed <= seen <= published <= produced <= consumed + size, in arithmetic modulo 2^32, whatever the
 * backend writes. Only `seen` comes from shared memory, and not before it was checked; nothing that we wrote there is
 * read back.
 */
import { invariant } from "../util/assert.ts";
import {
  type BlkifLayout,
  type BlkifRequest,
  type BlkifResponse,
  readResponse,
  writeRequest,
} from "../wire/blkif.ts";
import { REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD } from "../wire/shared-ring.ts";
import { RingMemory, type RingStart } from "./ring-memory.ts";

export class FrontRing {
  /** Slots, a power of two. */
  readonly size: number;
  readonly #memory: RingMemory;
  /** Requests put (req_prod_pvt). */
  #produced = 0;
  /** Requests published. */
  #published = 0;
  /** Responses published, as last seen and found possible. */
  #seen = 0;
  /** Responses consumed (rsp_cons). */
  #consumed = 0;
  #broken = false;

  /** `fresh` clears the pages and initialises them for both ends (SHARED_RING_INIT): before the backend maps them.
   * `attach` (FRONT_RING_ATTACH) goes on at the indexes published so far: requests that a former frontend has in
   * flight keep their slots until their responses come; responses that it left on the ring are passed over. */
  constructor(bytes: Uint8Array, layout: BlkifLayout, start: RingStart = "fresh") {
    this.#memory = new RingMemory(bytes, layout);
    this.size = this.#memory.size;
    const indexes = this.#memory.indexes;
    if (start === "fresh") {
      bytes.fill(0);
      Atomics.store(indexes, REQ_EVENT, 1);
      Atomics.store(indexes, RSP_EVENT, 1);
      return;
    }
    this.#produced = Atomics.load(indexes, REQ_PROD);
    this.#published = this.#produced;
    this.#consumed = Atomics.load(indexes, RSP_PROD);
    this.#seen = this.#consumed;
    if ((this.#produced - this.#consumed) >>> 0 > this.size) {
      this.#broken = true;
      this.#consumed = this.#produced;
      this.#seen = this.#produced;
    }
  }

  /** The backend's index was impossible. Latched: what was counted before can still be consumed, and nothing more is
   * counted. */
  get broken(): boolean {
    return this.#broken;
  }

  /** Slots that a request can be put into (RING_FREE_REQUESTS). */
  get free(): number {
    return this.size - ((this.#produced - this.#consumed) | 0);
  }

  /** Free-running, modulo 2^32, as all counters here. */
  get requestsProduced(): number {
    return this.#produced >>> 0;
  }

  get responsesConsumed(): number {
    return this.#consumed >>> 0;
  }

  /** Puts a request, which `publish` will show. There must be a free slot. */
  push(request: BlkifRequest): void {
    invariant(this.free > 0, "a request without a free slot");
    const memory = this.#memory;
    writeRequest(memory.layout, memory.words, memory.slot(this.#produced), request);
    this.#produced = (this.#produced + 1) | 0;
  }

  /** Shows the requests put so far; true when the backend asked to be notified of one of them
   * (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY). */
  publish(): boolean {
    const before = this.#published;
    const after = this.#produced;
    if (before === after) return false;
    this.#published = after;
    Atomics.store(this.#memory.indexes, REQ_PROD, after);
    const event = Atomics.load(this.#memory.indexes, REQ_EVENT);
    return (after - event) >>> 0 < (after - before) >>> 0;
  }

  /** Responses published and not consumed, or -1 when the ring is broken: the backend's index went back, or claims more
   * responses than there are requests to answer (stricter than RING_RESPONSE_PROD_OVERFLOW, which lets it claim a
   * whole ring). */
  pending(): number {
    if (this.#broken) return -1;
    const { indexes } = this.#memory;
    // Only what is new has to be ordered before the slots that it is about, and an atomic load is a call.
    if (indexes[RSP_PROD] === this.#seen) return (this.#seen - this.#consumed) | 0;
    return this.#count(Atomics.load(indexes, RSP_PROD));
  }

  #count(published: number): number {
    const count = (published - this.#consumed) >>> 0;
    const counted = (this.#seen - this.#consumed) | 0;
    const asked = (this.#published - this.#consumed) | 0;
    if (count < counted || count > asked) {
      this.#broken = true;
      return -1;
    }
    this.#seen = published;
    return count;
  }

  /** Takes the next of the responses that `pending` counted. */
  consume(into: BlkifResponse): void {
    invariant(this.#consumed !== this.#seen, "consuming a response that was not counted");
    const memory = this.#memory;
    readResponse(memory.words, memory.slot(this.#consumed), into);
    this.#consumed = (this.#consumed + 1) | 0;
  }

  /** Before waiting for an event: asks to be notified of the next response, and says whether one came meanwhile
   * (RING_FINAL_CHECK_FOR_RESPONSES). False on a broken ring, so that nobody spins on it. */
  finalCheck(): boolean {
    const count = this.pending();
    if (count !== 0) return count > 0;
    const { indexes } = this.#memory;
    Atomics.store(indexes, RSP_EVENT, (this.#consumed + 1) | 0);
    return this.#count(Atomics.load(indexes, RSP_PROD)) > 0;
  }
}
