/**
 * A disk in memory (nbdkit-memory-plugin(1)): pages that exist from their first write on, so that a 1T disk costs what
 * is written to it. Its bytes are gone when it is closed.
 */
import type { SegmentList } from "../../io/memory.ts";
import type { Reactor } from "../../io/reactor.ts";
import { BatchStore } from "../batch-store.ts";
import {
  type BlockRequest,
  type BlockStore,
  type Extent,
  Operation,
  type StoreDriver,
} from "../block-store.ts";
import { sizeParameter } from "../common-parameters.ts";
import { Errno } from "../errors.ts";
import { checkExtentRange, ExtentMerger } from "../extents.ts";
import { copyFromSegments, copyToSegments, zeroSegments } from "../segments.ts";
import { SPARSE_PAGE_SIZE, SparseMemory } from "../sparse-memory.ts";

export interface MemoryOptions {
  /** Bytes. */
  size: number;
}

export const memoryDriver: StoreDriver<MemoryOptions> = {
  name: "memory",
  summary: "a disk in memory, which takes memory only where it was written",
  parameters: { size: sizeParameter },
  positional: "size",
  async open({ size }, { reactor, readOnly }) {
    return new MemoryStore(size, reactor, readOnly);
  },
};

class MemoryStore extends BatchStore implements BlockStore {
  readonly #pages = new SparseMemory();

  constructor(size: number, reactor: Reactor, readOnly: boolean) {
    super(reactor, {
      size,
      readOnly,
      block: { minimum: 1, preferred: 4096, maximum: 2 ** 30 },
      discard: { granularity: SPARSE_PAGE_SIZE, alignment: 0, secure: false, zeroes: true },
      native: new Set(["flush", "forceUnitAccess", "writeZeroes", "extents", "cache"]),
      shareable: false,
      depth: 64,
      engine: "memory",
    });
  }

  protected override execute({
    operation,
    offset,
    length,
    segments,
    segmentByte,
  }: BlockRequest): number {
    switch (operation) {
      case Operation.read:
        this.#read(offset, length, segments!, segmentByte);
        return 0;
      case Operation.write:
        return this.#write(offset, length, segments!, segmentByte);
      case Operation.discard:
      case Operation.writeZeroes:
        this.#pages.zero(offset, offset + length);
        return 0;
      case Operation.flush:
      case Operation.cache:
        return 0;
    }
  }

  #read(offset: number, length: number, list: SegmentList, listByte: number): void {
    while (length > 0) {
      const inPage = offset % SPARSE_PAGE_SIZE;
      const piece = Math.min(length, SPARSE_PAGE_SIZE - inPage);
      const page = this.#pages.page(offset);
      if (page === undefined) zeroSegments(list, listByte, piece);
      else copyToSegments(page, inPage, list, listByte, piece);
      offset += piece;
      listByte += piece;
      length -= piece;
    }
  }

  #write(offset: number, length: number, list: SegmentList, listByte: number): number {
    while (length > 0) {
      const inPage = offset % SPARSE_PAGE_SIZE;
      const piece = Math.min(length, SPARSE_PAGE_SIZE - inPage);
      let page: Uint8Array;
      try {
        page = this.#pages.makePage(offset);
      } catch {
        return Errno.ENOMEM;
      }
      copyFromSegments(list, listByte, page, inPage, piece);
      offset += piece;
      listByte += piece;
      length -= piece;
    }
    return 0;
  }

  override async *extents(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    const end = offset + length;
    const merger = new ExtentMerger();
    for (let at = offset; at < end; ) {
      signal?.throwIfAborted();
      const stop = this.#pages.runEnd(at, end);
      const hole = this.#pages.page(at) === undefined;
      const run = merger.add(at, stop - at, hole, hole);
      if (run !== undefined) yield run;
      at = stop;
    }
    const last = merger.end();
    if (last !== undefined) yield last;
  }

  override async resize(size: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const before = this.info.size;
    this.changeSize(size);
    // What is cut off must not come back when the disk grows again.
    if (size < before) this.#pages.zero(size, before);
  }

  protected override release(): void {
    this.#pages.clear();
  }
}
