/**
 * A read-only disk whose every 8 bytes hold their own offset, big-endian (nbdkit-pattern-plugin(1)): whoever reads it
 * sees at once where bytes came from.
 */
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
import { copyToSegments } from "../segments.ts";

export interface PatternOptions {
  /** Bytes. */
  size: number;
}

export const patternDriver: StoreDriver<PatternOptions> = {
  name: "pattern",
  summary: "a read-only disk whose every 8 bytes hold their own offset",
  parameters: { size: sizeParameter },
  positional: "size",
  async open({ size }, { reactor }) {
    return new PatternStore(size, reactor);
  },
};

/** Bytes made at a time. */
const CHUNK = 4096;

class PatternStore extends BatchStore implements BlockStore {
  readonly #chunk = new Uint8Array(CHUNK);
  readonly #view = new DataView(this.#chunk.buffer);
  /** The offset that the chunk was made for. */
  #made = -1;

  constructor(size: number, reactor: Reactor) {
    super(reactor, {
      size,
      readOnly: true,
      block: { minimum: 1, preferred: CHUNK, maximum: 2 ** 30 },
      discard: undefined,
      native: new Set(["flush", "extents", "cache"]),
      shareable: true,
      depth: 64,
      engine: "pattern",
    });
  }

  protected override execute(request: BlockRequest): number {
    if (request.operation !== Operation.read) return 0;
    let { offset, segmentByte, length } = request;
    while (length > 0) {
      const inChunk = offset % CHUNK;
      const piece = Math.min(length, CHUNK - inChunk);
      this.#make(offset - inChunk);
      copyToSegments(this.#chunk, inChunk, request.segments!, segmentByte, piece);
      offset += piece;
      segmentByte += piece;
      length -= piece;
    }
    return 0;
  }

  #make(offset: number): void {
    if (offset === this.#made) return;
    this.#made = offset;
    // A chunk does not cross 4 GiB, so its upper halves are alike.
    const high = Math.floor(offset / 2 ** 32);
    const low = offset % 2 ** 32;
    for (let i = 0; i < CHUNK; i += 8) {
      this.#view.setUint32(i, high);
      this.#view.setUint32(i + 4, low + i);
    }
  }

  override async *extents(offset: number, length: number): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    if (length > 0) yield { offset, length, hole: false, zero: false };
  }
}
