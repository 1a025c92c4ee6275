/** A disk that reads as zeroes and forgets what is written (nbdkit-null-plugin(1)): the cost of everything but storage. */
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
import { checkExtentRange } from "../extents.ts";
import { zeroSegments } from "../segments.ts";

export interface NullOptions {
  /** Bytes. */
  size: number;
}

export const nullDriver: StoreDriver<NullOptions> = {
  name: "null",
  summary: "reads as zeroes, drops what is written",
  parameters: { size: sizeParameter },
  positional: "size",
  async open({ size }, { reactor, readOnly }) {
    return new NullStore(size, reactor, readOnly);
  },
};

class NullStore extends BatchStore implements BlockStore {
  constructor(size: number, reactor: Reactor, readOnly: boolean) {
    super(reactor, {
      size,
      readOnly,
      block: { minimum: 1, preferred: 4096, maximum: 2 ** 30 },
      discard: { granularity: 1, alignment: 0, secure: true, zeroes: true },
      native: new Set(["flush", "forceUnitAccess", "writeZeroes", "extents", "cache"]),
      shareable: true,
      depth: 64,
      engine: "null",
    });
  }

  protected override execute(request: BlockRequest): number {
    if (request.operation === Operation.read) {
      zeroSegments(request.segments!, request.segmentByte, request.length);
    }
    return 0;
  }

  override async *extents(offset: number, length: number): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    if (length > 0) yield { offset, length, hole: true, zero: true };
  }

  override async resize(size: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    this.changeSize(size);
  }
}
