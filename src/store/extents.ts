/** Runs of extents: checked ranges, neighbours merged. */
import type { BlockStore, Extent } from "./block-store.ts";
import { StoreError } from "./errors.ts";

/** Throws StoreError("EINVAL") for a range that is not within the disk. */
export function checkExtentRange(
  store: Pick<BlockStore, "info">,
  offset: number,
  length: number,
): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= store.info.size)) {
    throw new StoreError(
      "EINVAL",
      `extents of ${offset}+${length} are not within the disk's ${store.info.size} bytes`,
    );
  }
}

/** Extents in order, with neighbours of one state joined. */
export class ExtentMerger {
  #offset = 0;
  #length = 0;
  #hole = false;
  #zero = false;

  /** Adds what follows. Returns the run before it, where that has ended. */
  add(offset: number, length: number, hole: boolean, zero: boolean): Extent | undefined {
    if (length === 0) return undefined;
    if (this.#length > 0 && this.#hole === hole && this.#zero === zero) {
      this.#length += length;
      return undefined;
    }
    const ended = this.end();
    this.#offset = offset;
    this.#length = length;
    this.#hole = hole;
    this.#zero = zero;
    return ended;
  }

  /** The last run. */
  end(): Extent | undefined {
    if (this.#length === 0) return undefined;
    const run = {
      offset: this.#offset,
      length: this.#length,
      hole: this.#hole,
      zero: this.#zero,
    };
    this.#length = 0;
    return run;
  }
}
