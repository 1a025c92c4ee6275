/**
 * A disk that does what is in flight in any order, each a little later, as the port allows: whoever relies on an order
 * that was not promised is found out. A flush overtakes writes that have not completed, and covers them not.
 */
import type { Reactor } from "../io/reactor.ts";
import type { BlockRequest, BlockStore } from "../store/block-store.ts";
import { Errno } from "../store/errors.ts";
import { ForwardingStore } from "../store/forwarding-store.ts";
import { SeededRandom } from "../util/random.ts";

export class ShufflingStore extends ForwardingStore {
  readonly #random: SeededRandom;
  readonly #most: number;
  readonly #held = new Map<BlockRequest, NodeJS.Timeout>();

  /** Owns `next`. `most` is the longest that a request is held back, in milliseconds. */
  constructor(next: BlockStore, reactor: Reactor, seed: number, most: number = 4) {
    super(next, reactor);
    this.#random = new SeededRandom(seed);
    this.#most = most;
  }

  override submit(request: BlockRequest): void {
    const milliseconds = this.#random.below(this.#most + 1);
    const timer = setTimeout(() => {
      this.#held.delete(request);
      this.next.submit(request);
      this.reactor.settle();
    }, milliseconds);
    this.#held.set(request, timer);
  }

  override async cancel(reason: Error): Promise<void> {
    for (const [request, timer] of this.#held) {
      clearTimeout(timer);
      this.answer(request, Errno.ECANCELED);
    }
    this.#held.clear();
    await super.cancel(reason);
  }
}
