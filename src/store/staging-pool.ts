/**
 * A bounded pool of memory that buffers of users are copied through: users' memory may move, be transferred or be
 * collected while a store still writes into it; this may not.
 */
import { allocateRegion, type MemoryRegion, type SegmentList } from "../io/memory.ts";

/** Bytes: a small request wastes little of it, a large one takes several. */
export const SLOT_BYTES: number = 16 * 1024;
const SLOT_COUNT = 256;
/** Bytes of a pool, of which only what was used is resident. */
export const POOL_BYTES: number = SLOT_COUNT * SLOT_BYTES;

export class StagingPool implements Disposable {
  readonly #free = new Uint16Array(SLOT_COUNT);
  #freeCount = SLOT_COUNT;
  readonly #allocate: (byteLength: number) => MemoryRegion;
  #region: MemoryRegion | undefined = undefined;

  constructor(allocate: (byteLength: number) => MemoryRegion = allocateRegion) {
    this.#allocate = allocate;
    // The top of the stack is the lowest slot: neighbours taken in order become one segment.
    for (let i = 0; i < SLOT_COUNT; i++) this.#free[i] = SLOT_COUNT - 1 - i;
  }

  /** Fills the empty list with slots for `length` bytes. False where they are not free now. */
  take(list: SegmentList, length: number): boolean {
    const slots = Math.ceil(length / SLOT_BYTES);
    if (slots > this.#freeCount) return false;
    this.#region ??= this.#allocate(POOL_BYTES);
    for (let i = 0; i < slots; i++) {
      this.#freeCount--;
      list.add(this.#region, this.#free[this.#freeCount]! * SLOT_BYTES, SLOT_BYTES);
    }
    return true;
  }

  /** Takes the slots of a list back, and empties it. */
  give(list: SegmentList): void {
    for (let i = list.count - 1; i >= 0; i--) {
      const first = list.starts[i]! / SLOT_BYTES;
      for (let slot = first + list.lengths[i]! / SLOT_BYTES - 1; slot >= first; slot--) {
        this.#free[this.#freeCount++] = slot;
      }
    }
    list.clear();
  }

  [Symbol.dispose](): void {
    this.#region?.[Symbol.dispose]();
    this.#region = undefined;
  }
}
