/** What the process that is killed writes, and whoever restores its guest looks for: blocks of which each has one writer,
 * who begins with one again only when the write before has been answered. */
import assert from "node:assert/strict";

export const WRITERS = 24;
/** Side by side, so that writes to them may become one. */
export const BLOCKS_PER_WRITER = 16;
export const BLOCKS: number = WRITERS * BLOCKS_PER_WRITER;
export const BLOCK_BYTES = 8192;
/** What is written whole or not at all, on every disk. Bytes. */
const SECTOR_BYTES = 512;

/** Bytes that tell of their block and generation, and of their place in the block. Generation 0 is a disk of zeroes. */
export function contents(block: number, generation: number): Buffer {
  const bytes = Buffer.alloc(BLOCK_BYTES);
  if (generation > 0) fill(bytes, block * 65537 + generation);
  return bytes;
}

export function fill(bytes: Uint8Array, value: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < bytes.length; at += 4) view.setUint32(at, (value * 2654435761 + at) >>> 0);
}

/** What the writers said: "b BLOCK GENERATION" before they begin, "a BLOCK GENERATION" when it was answered. */
export class Account {
  readonly #answered = new Map<number, number>();
  readonly #begun = new Map<number, number>();

  constructor(lines: string) {
    for (const line of lines.split("\n")) {
      const [what, block, generation] = line.split(" ");
      // The last line may be a piece.
      if (generation === undefined) continue;
      if (what === "b") this.#begun.set(Number(block), Number(generation));
      if (what === "a") this.#answered.set(Number(block), Number(generation));
    }
  }

  get blocks(): number {
    return this.#begun.size;
  }

  /** Every write that was answered is there; one that was not is there or not there, sector by sector. */
  check(image: Uint8Array, context: string): void {
    for (let block = 0; block < BLOCKS; block++) {
      const had = this.#answered.get(block) ?? 0;
      const wanted = this.#begun.get(block) ?? 0;
      const [before, after] = [contents(block, had), contents(block, wanted)];
      for (let at = 0; at < BLOCK_BYTES; at += SECTOR_BYTES) {
        const start = block * BLOCK_BYTES + at;
        const sector = image.subarray(start, start + SECTOR_BYTES);
        const is = (bytes: Buffer) => bytes.subarray(at, at + SECTOR_BYTES).equals(sector);
        const what = `block ${block}, byte ${at}: neither ${had} nor ${wanted}, ${context}`;
        assert.ok(is(before) || is(after), what);
      }
    }
  }
}
