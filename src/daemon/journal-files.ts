/**
 * Journals of rings in a folder, one file for each: what a backend that was killed leaves to its successor.
 *
 * Invariant: the folder is ours alone (0700): who could write there could have anything read from a guest's memory or
 * written to its disk.
 */
import { mkdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import type { RingJournals } from "../block/index.ts";
import { mapFile } from "../io/mapped-file.ts";
import type { MemoryRegion } from "../io/memory.ts";

/** More rings than a vbd can have: where a search for files of earlier lives ends. */
const MAX_RINGS = 64;

/** The journals of one vbd. Disposal unmaps them; the files stay. */
export class JournalFiles implements RingJournals, Disposable {
  readonly #prefix: string;
  readonly #regions = new Map<number, MemoryRegion>();

  /** Throws where the folder cannot be made, or is not ours alone. */
  constructor(folder: string, domid: number, vdev: number) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const { uid, mode } = statSync(folder);
    if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
      throw new Error(`${folder} is to be a folder of yours alone: chmod 700, or another name`);
    }
    this.#prefix = join(folder, `${domid}-${vdev}-`);
  }

  open(ring: number, byteLength: number): Uint8Array {
    this.#regions.get(ring)?.[Symbol.dispose]();
    const region = mapFile(this.#prefix + ring, byteLength);
    this.#regions.set(ring, region);
    return region.bytes;
  }

  /** Unmaps them and removes the files: the vbd has ended. */
  remove(): void {
    this[Symbol.dispose]();
    for (let ring = 0; ring < MAX_RINGS; ring++) rmSync(this.#prefix + ring, { force: true });
  }

  [Symbol.dispose](): void {
    for (const region of this.#regions.values()) region[Symbol.dispose]();
    this.#regions.clear();
  }
}
