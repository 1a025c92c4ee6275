/** Ranges of a disk that are being changed block by block, so that no two changes of one block run at once. */
export class RangeLocks {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** Whether [start, end) meets a locked range. Linear: there are as many as requests in flight. */
  overlaps(start: number, end: number): boolean {
    for (let i = 0; i < this.#count; i++) {
      if (start < this.#ends[i]! && this.#starts[i]! < end) return true;
    }
    return false;
  }

  /** Locks [start, end), unless some of it is locked. */
  tryLock(start: number, end: number): boolean {
    if (this.overlaps(start, end)) return false;
    this.#starts[this.#count] = start;
    this.#ends[this.#count] = end;
    this.#count++;
    return true;
  }

  /** Gives back what tryLock locked. */
  unlock(start: number): void {
    let i = 0;
    while (this.#starts[i] !== start) i++;
    this.#count--;
    this.#starts[i] = this.#starts[this.#count]!;
    this.#ends[i] = this.#ends[this.#count]!;
  }
}
