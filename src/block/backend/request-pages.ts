/** The pages of one request of the peer, as memory that a store may use: fixed arrays, filled by whoever maps or copies them
 * (grant-cache.ts, copied-pages.ts), who takes them back, too. */
import type { MemoryRegion } from "../../io/memory.ts";
import { type GrantCopyBatch, PAGE_SIZE } from "../../xen/domain.ts";
import type { ValidRequest } from "./request.ts";

export class RequestPages implements GrantCopyBatch {
  count = 0;
  /** They are images of the peer's pages in memory of ours; otherwise they are those pages. */
  copied = false;
  readonly regions: (MemoryRegion | undefined)[];
  /** Byte in the region. */
  readonly starts: Float64Array;
  // Of pages that are mapped.
  /** Slot in the cache of kept pages, or -1 where `handles` holds a mapping of this request alone. */
  readonly slots: Int32Array;
  readonly handles: Uint32Array;
  // Of pages that are copied.
  readonly references: Uint32Array;
  readonly offsets: Uint16Array;
  readonly lengths: Uint16Array;
  readonly statuses: Int8Array;

  constructor(capacity: number) {
    this.regions = new Array<MemoryRegion | undefined>(capacity).fill(undefined);
    this.starts = new Float64Array(capacity);
    this.slots = new Int32Array(capacity);
    this.handles = new Uint32Array(capacity);
    this.references = new Uint32Array(capacity);
    this.offsets = new Uint16Array(capacity);
    this.lengths = new Uint16Array(capacity);
    this.statuses = new Int8Array(capacity);
  }

  get capacity(): number {
    return this.handles.length;
  }

  /** Lists `count` whole pages, to be copied. */
  list(references: Uint32Array, count: number): void {
    this.count = count;
    for (let i = 0; i < count; i++) this.references[i] = references[i]!;
    this.offsets.fill(0, 0, count);
    this.lengths.fill(PAGE_SIZE, 0, count);
  }

  /** Lists what a request means of its pages, to be copied. */
  listParts({ references, firstSectors, lastSectors, count }: ValidRequest): void {
    this.count = count;
    for (let i = 0; i < count; i++) {
      const first = firstSectors[i]!;
      this.references[i] = references[i]!;
      this.offsets[i] = first * SECTOR_SIZE;
      this.lengths[i] = (lastSectors[i]! - first + 1) * SECTOR_SIZE;
    }
  }
}

/** Bytes of a sector, once a request was checked. */
export const SECTOR_SIZE = 512;
