/**
 * When a ring's kept pages are looked through and given back (blkback.c: LRU_INTERVAL, xen_blkbk_unmap_purged_grants).
 *
 * Invariant: a timer runs only while there is something to give back, now or in time: a ring without kept pages has
 * none. Pages are unmapped a few at a time, between batches of requests.
 */
import type { Clock } from "../../util/clock.ts";
import type { GrantCache } from "./grant-cache.ts";

/** Of an overflowing cache, and the least between any two scans. */
const SCAN_INTERVAL_MILLISECONDS = 100;
/** Pages unmapped in one round of the reactor. */
const UNMAP_BATCH = 64;

export class Reclaim implements Disposable {
  readonly #cache: GrantCache;
  readonly #clock: Clock;
  /** Asks for a kick, which calls `step`. */
  readonly #wake: () => void;
  #timer: Disposable | undefined = undefined;
  /** Of the reactor, in which the clock was read last. */
  #turn = -1;
  /** When the timer will run. */
  #due = Number.POSITIVE_INFINITY;
  /** Pages given back since the beginning. */
  count = 0;

  constructor(cache: GrantCache, clock: Clock, wake: () => void) {
    this.#cache = cache;
    this.#clock = clock;
    this.#wake = wake;
    cache.now = clock.now();
  }

  /** Before a batch of requests: what is used now is noted as used now, or some milliseconds ago, when the reactor's `turn`
   * began. */
  begin(turn: number): void {
    if (turn === this.#turn) return;
    this.#turn = turn;
    this.#cache.now = this.#clock.now();
  }

  /** After a batch: unmaps some of what was given up, and sees to it that the cache is looked through in time. */
  step(): void {
    const cache = this.#cache;
    if (cache.purged > 0) {
      cache.unmapPurged(UNMAP_BATCH);
      if (cache.purged > 0) this.#wake();
    }
    if (cache.overflowed) this.#arm(cache.now + SCAN_INTERVAL_MILLISECONDS);
    else if (this.#timer === undefined && cache.kept > 0) this.#arm(cache.nextOld);
  }

  #arm(due: number): void {
    if (due >= this.#due || due === Number.POSITIVE_INFINITY) return;
    this.#timer?.[Symbol.dispose]();
    this.#due = due;
    const delay = Math.max(SCAN_INTERVAL_MILLISECONDS, due - this.#cache.now);
    this.#timer = this.#clock.after(delay, () => this.#scan());
  }

  #scan(): void {
    this[Symbol.dispose]();
    this.#cache.now = this.#clock.now();
    this.count += this.#cache.scan();
    this.#wake();
  }

  /** Stops the timer. */
  [Symbol.dispose](): void {
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
    this.#due = Number.POSITIVE_INFINITY;
  }
}
