/**
 * The requests in execution of one ring, at most one for each slot. The one that was used last is used first, and one is
 * made only where all are in use: few requests at a time need little memory, which stays in the processor's cache.
 *
 * Invariant: a request's tag is its index, also in the ring's journal, whoever made it.
 */
import type { RequestOwner } from "../../store/block-store.ts";
import { Fifo } from "../../util/fifo.ts";
import type { DrainMember } from "./drain.ts";
import { PendingRequest } from "./pending-request.ts";

export class PendingRequests {
  readonly #owner: RequestOwner & DrainMember;
  readonly #byTag: (PendingRequest | undefined)[];
  readonly #free = new Fifo<PendingRequest>();
  /** All below it have been made. */
  #made = 0;

  constructor(owner: RequestOwner & DrainMember, slots: number) {
    this.#owner = owner;
    this.#byTag = new Array<undefined>(slots).fill(undefined);
  }

  /** Must have been taken. */
  of(tag: number): PendingRequest {
    return this.#byTag[tag]!;
  }

  /** The one of a tag that a backend before us used. To be called before the first `take`. */
  inherit(tag: number): PendingRequest {
    return this.#make(tag);
  }

  /** undefined where all are in use. */
  take(): PendingRequest | undefined {
    const free = this.#free.shift();
    if (free !== undefined) return free;
    while (this.#made < this.#byTag.length && this.#byTag[this.#made] !== undefined) this.#made++;
    return this.#made < this.#byTag.length ? this.#make(this.#made) : undefined;
  }

  give(request: PendingRequest): void {
    this.#free.unshift(request);
  }

  #make(tag: number): PendingRequest {
    const request = new PendingRequest(this.#owner, tag);
    this.#byTag[tag] = request;
    return request;
  }
}
