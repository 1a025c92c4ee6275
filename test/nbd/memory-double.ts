/** A disk in memory for tests: holds requests back, fails them and counts them as it is told. */
import type { Kickable, Reactor } from "../../src/io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  type NativeFeature,
  Operation,
  RequestFlag,
  type StoreListener,
} from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";

const EXTENT = 64 * 1024;

export class MemoryDouble implements BlockStore, Kickable {
  info: BlockStoreInfo;
  readonly bytes: Uint8Array;
  /** 64 KiB pieces that were written to. */
  readonly #allocated: Uint8Array;
  readonly #reactor: Reactor;
  #batch: BlockRequest[] = [];
  #held: BlockRequest[] = [];
  #dirty = false;
  readonly #listeners = new Set<StoreListener>();
  /** Errno for every request, or 0. */
  failWith = 0;
  /** Keep requests until `release`. */
  hold = false;
  /** Fast zeroing fails. */
  slowZeroes = false;
  readonly seen: { operation: Operation; flags: number; offset: number; length: number }[] = [];

  constructor(
    reactor: Reactor,
    size: number,
    options: { readOnly?: boolean; minimum?: number } = {},
  ) {
    this.#reactor = reactor;
    this.bytes = new Uint8Array(size);
    this.#allocated = new Uint8Array(Math.ceil(size / EXTENT));
    const native: NativeFeature[] = ["flush", "forceUnitAccess", "writeZeroes", "extents", "cache"];
    this.info = {
      size,
      readOnly: options.readOnly ?? false,
      block: { minimum: options.minimum ?? 1, preferred: 4096, maximum: 2 ** 32 - 4096 },
      discard: { granularity: 1, alignment: 0, secure: false, zeroes: true },
      native: new Set(native),
      shareable: false,
      depth: 256,
    };
  }

  get heldCount(): number {
    return this.#held.length;
  }

  submit(request: BlockRequest): void {
    this.#batch.push(request);
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  release(): void {
    this.hold = false;
    for (const request of this.#held.splice(0)) this.submit(request);
    this.#reactor.settle();
  }

  kick(): void {
    this.#dirty = false;
    const batch = this.#batch;
    this.#batch = [];
    for (const request of batch) {
      if (this.hold) {
        this.#held.push(request);
        continue;
      }
      const { operation, flags, offset, length } = request;
      this.seen.push({ operation, flags, offset, length });
      request.status = this.failWith !== 0 ? this.failWith : this.#do(request);
      request.owner.completed(request);
    }
  }

  #do(request: BlockRequest): number {
    const { operation, offset, length, flags } = request;
    const end = offset + length;
    if (end > this.info.size) return Errno.EINVAL;
    if (operation === Operation.write || operation === Operation.read) {
      this.#copy(request, operation === Operation.write);
      if (operation === Operation.write) this.#mark(offset, end);
    } else if (operation === Operation.writeZeroes || operation === Operation.discard) {
      if (this.slowZeroes && (flags & RequestFlag.mustBeFast) !== 0) return Errno.EOPNOTSUPP;
      this.bytes.fill(0, offset, end);
      if (operation === Operation.writeZeroes && (flags & RequestFlag.mayUnmap) === 0) {
        this.#mark(offset, end);
      } else {
        this.#allocated.fill(0, Math.ceil(offset / EXTENT), Math.floor(end / EXTENT));
      }
    }
    return 0;
  }

  #mark(offset: number, end: number): void {
    this.#allocated.fill(1, Math.floor(offset / EXTENT), Math.ceil(end / EXTENT));
  }

  #copy(request: BlockRequest, write: boolean): void {
    const list = request.segments!;
    let skip = request.segmentByte;
    let at = request.offset;
    let left = request.length;
    for (let i = 0; i < list.count && left > 0; i++) {
      const length = list.lengths[i]!;
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const count = Math.min(length - skip, left);
      const start = list.starts[i]! + skip;
      const memory = list.regions[i]!.bytes.subarray(start, start + count);
      if (write) this.bytes.set(memory, at);
      else memory.set(this.bytes.subarray(at, at + count));
      at += count;
      left -= count;
      skip = 0;
    }
  }

  async *extents(offset: number, length: number): AsyncIterable<Extent> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / EXTENT);
      const next = Math.min((index + 1) * EXTENT, end);
      const hole = this.#allocated[index] === 0;
      yield { offset: at, length: next - at, hole, zero: hole };
      at = next;
    }
  }

  async resize(size: number): Promise<void> {
    this.info = { ...this.info, size };
    for (const listener of this.#listeners) listener.resized?.(this.info);
  }

  subscribe(listener: StoreListener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  async cancel(): Promise<void> {
    for (const request of this.#held.splice(0)) {
      request.status = Errno.ECANCELED;
      request.owner.completed(request);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel();
  }
}
