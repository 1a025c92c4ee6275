/**
 * Which slot keeps a grant reference. Each page of each request is looked up, so it is an array as far as references of
 * Linux's guests go, and a map for all beyond, which an odd guest may have.
 */

/** A grant table as Linux has it by default: 64 frames of 512 entries. */
const ARRAY_ENTRIES = 32768;
const FIRST_ENTRIES = 64;

export class KeptReferences {
  /** By reference: the slot and 1, or 0. As long as the largest reference so far needs. */
  #slots = new Int32Array(0);
  readonly #others = new Map<number, number>();

  /** The slot, or -1. */
  slotOf(reference: number): number {
    const slots = this.#slots;
    if (reference < slots.length) return slots[reference]! - 1;
    return reference < ARRAY_ENTRIES ? -1 : (this.#others.get(reference) ?? -1);
  }

  add(reference: number, slot: number): void {
    if (reference >= ARRAY_ENTRIES) {
      this.#others.set(reference, slot);
      return;
    }
    if (reference >= this.#slots.length) this.#grow(reference);
    this.#slots[reference] = slot + 1;
  }

  #grow(reference: number): void {
    let length = FIRST_ENTRIES;
    while (length <= reference) length *= 2;
    const slots = new Int32Array(length);
    slots.set(this.#slots);
    this.#slots = slots;
  }

  delete(reference: number): void {
    if (reference < ARRAY_ENTRIES) this.#slots[reference] = 0;
    else this.#others.delete(reference);
  }
}
