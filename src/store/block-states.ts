/** A small number (0 to 3) for each block of a disk, four to a byte. */
import { StoreError } from "./errors.ts";

/** Bytes of the map: a quarter of a gigabyte describes 64 TiB in blocks of 64 KiB. */
const MAX_MAP_BYTES = 2 ** 28;

export class BlockStates {
  readonly #bytes: Uint8Array;

  /** Throws StoreError("EFBIG") where there are too many blocks. */
  constructor(blocks: number) {
    const length = Math.ceil(blocks / 4);
    if (length > MAX_MAP_BYTES) {
      throw new StoreError("EFBIG", `${blocks} blocks are too many for a map; use larger blocks`);
    }
    this.#bytes = new Uint8Array(length);
  }

  get(block: number): number {
    return (this.#bytes[Math.floor(block / 4)]! >> ((block % 4) * 2)) & 3;
  }

  /** Sets blocks [first, end). */
  set(first: number, end: number, state: number): void {
    for (let block = first; block < end; ) {
      const at = Math.floor(block / 4);
      if (block % 4 === 0 && end - block >= 4) {
        const whole = Math.floor(end / 4);
        this.#bytes.fill(state * 0x55, at, whole);
        block = whole * 4;
        continue;
      }
      const shift = (block % 4) * 2;
      this.#bytes[at] = (this.#bytes[at]! & ~(3 << shift)) | (state << shift);
      block++;
    }
  }

  /** The first block after `first` and before `end` whose state is another, or `end`. */
  runEnd(first: number, end: number): number {
    const state = this.get(first);
    let block = first + 1;
    while (block < end) {
      if (block % 4 === 0 && end - block >= 4 && this.#bytes[block / 4] === state * 0x55)
        block += 4;
      else if (this.get(block) === state) block++;
      else break;
    }
    return block;
  }
}
