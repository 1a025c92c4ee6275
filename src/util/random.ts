/** Numbers that look random and are the same again for the same seed (xorshift32, Marsaglia 2003). */
export class SeededRandom {
  #state: number;

  /** Any number; its lower 32 bits count. */
  constructor(seed: number) {
    // Zero is the one state that xorshift never leaves, and neighbouring seeds shall not look alike.
    this.#state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) >>> 0 || 1;
  }

  /** From 0 to 1, without 1. */
  next(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state >>> 0;
    return this.#state / 2 ** 32;
  }

  /** A whole number from 0 to `limit`, without `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }
}
