/**
 * A disk with a volatile cache and a plug to pull: what was neither flushed nor written with forced unit access may be
 * gone after a power cut. It keeps the letter of the port and no more: a flush covers what had *completed* when it was
 * submitted, so whoever flushes too early is found out.
 */
import type { Reactor } from "../io/reactor.ts";
import { BatchStore } from "../store/batch-store.ts";
import { type BlockRequest, type Extent, Operation, RequestFlag } from "../store/block-store.ts";
import { checkExtentRange } from "../store/extents.ts";
import { copyFromSegments, copyToSegments } from "../store/segments.ts";
import { SeededRandom } from "../util/random.ts";

/** Bytes: what a disk keeps or loses as one. */
const SECTOR = 512;

export class ForgetfulStore extends BatchStore {
  readonly #cache: Uint8Array;
  readonly #durable: Uint8Array;
  /** Sectors that differ, or may. */
  readonly #unflushed = new Set<number>();
  /** For each flush in the batch: the sectors it covers. */
  readonly #covered: number[][] = [];

  /** `size` in bytes, whole sectors. */
  constructor(reactor: Reactor, size: number) {
    super(reactor, {
      size,
      readOnly: false,
      block: { minimum: SECTOR, preferred: 4096, maximum: 2 ** 20 },
      discard: { granularity: SECTOR, alignment: 0, secure: false, zeroes: true },
      native: new Set(["flush", "forceUnitAccess", "writeZeroes"]),
      shareable: false,
      depth: 32,
      engine: "forgetful",
    });
    this.#cache = new Uint8Array(size);
    this.#durable = new Uint8Array(size);
  }

  /** Sectors that a power cut may take. */
  get unflushed(): number {
    return this.#unflushed.size;
  }

  /** Requests in flight end with ECANCELED, and what is not durable is gone; with a seed, each such sector is lost or kept by chance,
   * as a disk does it. The disk works on, as after a restart. */
  powerCut(seed?: number): void {
    const random = seed === undefined ? undefined : new SeededRandom(seed);
    for (const sector of this.#unflushed) {
      const at = sector * SECTOR;
      const kept = random !== undefined && random.next() < 0.5;
      const [from, to] = kept ? [this.#cache, this.#durable] : [this.#durable, this.#cache];
      to.set(from.subarray(at, at + SECTOR), at);
    }
    this.#unflushed.clear();
    void this.cancel(new Error("the power was cut"));
  }

  override submit(request: BlockRequest): void {
    if (request.operation === Operation.flush) this.#covered.push([...this.#unflushed]);
    super.submit(request);
  }

  override cancel(reason: Error): Promise<void> {
    // The flushes in the batch are cancelled with the rest.
    this.#covered.length = 0;
    return super.cancel(reason);
  }

  protected override execute(request: BlockRequest): number {
    const { operation, offset, length, segments, segmentByte, flags } = request;
    switch (operation) {
      case Operation.read:
        copyToSegments(this.#cache, offset, segments!, segmentByte, length);
        return 0;
      case Operation.write:
        copyFromSegments(segments!, segmentByte, this.#cache, offset, length);
        break;
      case Operation.discard:
      case Operation.writeZeroes:
        this.#cache.fill(0, offset, offset + length);
        break;
      case Operation.flush:
        for (const sector of this.#covered.shift() ?? []) this.#keep(sector);
        return 0;
      case Operation.cache:
        return 0;
    }
    const durable = (flags & RequestFlag.forceUnitAccess) !== 0;
    for (let sector = offset / SECTOR; sector < (offset + length) / SECTOR; sector++) {
      if (durable) this.#keep(sector);
      else this.#unflushed.add(sector);
    }
    return 0;
  }

  #keep(sector: number): void {
    const at = sector * SECTOR;
    this.#durable.set(this.#cache.subarray(at, at + SECTOR), at);
    this.#unflushed.delete(sector);
  }

  override async *extents(offset: number, length: number): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    if (length > 0) yield { offset, length, hole: false, zero: false };
  }
}
