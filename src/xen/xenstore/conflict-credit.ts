/**
 * How a domain pays for changes that made transactions of others fail: it may cause some, and from then on each holds
 * back its requests for a while, longer each time (conflict credit of oxenstored, XSA-206).
 *
 * Invariant: what is paid is bounded, and forgotten with time.
 */

/** Conflicts that cost nothing: an honest guest that writes its state meets a toolstack now and then. */
const FREE_CONFLICTS = 5;
/** Milliseconds until one more is forgotten: somebody who never stops causes about one conflict in that time. */
const FORGET_MS = 1000;
/** Milliseconds for the first that costs, doubled for each more: a transaction of a toolstack takes less. */
const FIRST_HOLD_MS = 20;
const MAX_HOLD_MS = 1000;

export class ConflictCredit {
  #conflicts = 0;
  #countedAt = 0;
  #heldUntil = 0;

  /** It never had to pay. */
  get none(): boolean {
    return this.#heldUntil === 0;
  }

  /** A change that the domain made ended somebody else's transaction at `now`, in milliseconds. */
  charge(now: number): void {
    const forgotten = (now - this.#countedAt) / FORGET_MS;
    this.#conflicts = Math.max(0, this.#conflicts - forgotten) + 1;
    this.#countedAt = now;
    const beyond = Math.floor(this.#conflicts - FREE_CONFLICTS);
    if (beyond <= 0) return;
    this.#heldUntil = now + Math.min(MAX_HOLD_MS, FIRST_HOLD_MS * 2 ** (beyond - 1));
  }

  /** Milliseconds from `now` that requests have to wait. */
  heldFor(now: number): number {
    return Math.max(0, this.#heldUntil - now);
  }
}
