/**
 * A disk for people: promises, streams and async iterables over a BlockStore.
 *
 * Any offset and length will do: where the store has larger blocks, their rest is read and written back. Data is copied
 * through a bounded pool, so calls beyond it wait their turn.
 */
import type { Reactor } from "../io/reactor.ts";
import {
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  Operation,
  RequestFlag,
} from "./block-store.ts";
import { emulate } from "./emulate.ts";
import { StoreError } from "./errors.ts";
import { Transfer, TransferQueue } from "./transfer.ts";

/** Bytes of a chunk that a stream yields. */
const STREAM_CHUNK_BYTES = 256 * 1024;
/** Chunks of a stream under way at once: reading overlaps with what the consumer does. */
const STREAM_CHUNKS = 4;

export interface AccessOptions {
  /** Rejects the promise at once with the signal's reason. What had begun may still happen. */
  readonly signal?: AbortSignal;
}
export interface ChangeOptions extends AccessOptions {
  /** Durable when the promise resolves, without a flush. */
  readonly forceUnitAccess?: boolean;
}
export interface WriteZeroesOptions extends ChangeOptions {
  /** The zeroes may become a hole. */
  readonly mayUnmap?: boolean;
  /** Reject with EOPNOTSUPP rather than write the zeroes out. */
  readonly mustBeFast?: boolean;
}
export interface RangeOptions extends AccessOptions {
  /** Bytes; 0 if absent. */
  readonly offset?: number;
  /** Bytes; to the end of the disk if absent. */
  readonly length?: number;
}

export class Disk implements AsyncDisposable {
  /** What this is the face of. Disposing either disposes both. */
  readonly store: BlockStore;
  readonly #whole: BlockStore;
  readonly #transfers: TransferQueue;
  #closed = false;

  constructor(store: BlockStore, reactor: Reactor) {
    this.store = store;
    this.#whole = emulate(store, reactor);
    this.#transfers = new TransferQueue(this.#whole, reactor);
  }

  get info(): BlockStoreInfo {
    return this.store.info;
  }

  /** Bytes. */
  get size(): number {
    return this.store.info.size;
  }

  /** Resolves to `length` bytes. Rejects with a StoreError: EINVAL for a range that is not on the disk, and what the
   * store says. */
  async read(offset: number, length: number, options: AccessOptions = {}): Promise<Uint8Array> {
    this.#check(offset, length, false);
    const bytes = new Uint8Array(length);
    await this.#run(Operation.read, 0, offset, length, bytes, options.signal);
    return bytes;
  }

  /** Fills `bytes`, which belong to the disk until the promise is settled. As read. */
  async readInto(offset: number, bytes: Uint8Array, options: AccessOptions = {}): Promise<void> {
    this.#check(offset, bytes.length, false);
    await this.#run(Operation.read, 0, offset, bytes.length, bytes, options.signal);
  }

  /** Writes `bytes`, which must not change until the promise is settled. Rejects with a StoreError: EROFS, ENOSPC past the
   * end, and what the store says; some of the bytes may be on the disk then. */
  async write(offset: number, bytes: Uint8Array, options: ChangeOptions = {}): Promise<void> {
    this.#check(offset, bytes.length, true);
    await this.#run(
      Operation.write,
      durability(options),
      offset,
      bytes.length,
      bytes,
      options.signal,
    );
  }

  /** Resolves when all that was written before the call is durable. */
  async flush(options: AccessOptions = {}): Promise<void> {
    this.#check(0, 0, false);
    await this.#run(Operation.flush, 0, 0, 0, undefined, options.signal);
  }

  /** Says that the bytes are not needed: whole blocks among them may be given back, and read as anything. Rejects with
   * EOPNOTSUPP where the store cannot. */
  async discard(
    offset: number,
    length: number,
    options: ChangeOptions & { readonly secure?: boolean } = {},
  ): Promise<void> {
    this.#check(offset, length, true);
    const { minimum } = this.info.block;
    const start = Math.ceil(offset / minimum) * minimum;
    const end = offset + length - ((offset + length) % minimum);
    const flags = durability(options) | (options.secure === true ? RequestFlag.secure : 0);
    const whole = Math.max(0, end - start);
    await this.#run(Operation.discard, flags, start, whole, undefined, options.signal);
  }

  async writeZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions = {},
  ): Promise<void> {
    this.#check(offset, length, true);
    const flags =
      durability(options) |
      (options.mayUnmap === true ? RequestFlag.mayUnmap : 0) |
      (options.mustBeFast === true ? RequestFlag.mustBeFast : 0);
    await this.#run(Operation.writeZeroes, flags, offset, length, undefined, options.signal);
  }

  /** Runs of data, zeroes and holes that cover the range, which is the whole disk if absent. */
  extents(
    offset: number = 0,
    length: number = this.size - offset,
    signal?: AbortSignal,
  ): AsyncIterable<Extent> {
    return this.store.extents(offset, length, signal);
  }

  /** Bytes. Rejects with EOPNOTSUPP where the store has one size for ever. */
  async resize(size: number, options: AccessOptions = {}): Promise<void> {
    this.#check(0, 0, false);
    await this.store.resize(size, options.signal);
  }

  /** The bytes of a range, read ahead a little. */
  readable(options: RangeOptions = {}): ReadableStream<Uint8Array> {
    const { offset = 0, length = this.size - offset } = options;
    const end = offset + length;
    const cancelled = new AbortController();
    const signal =
      options.signal === undefined
        ? cancelled.signal
        : AbortSignal.any([options.signal, cancelled.signal]);
    const ahead: Promise<Uint8Array>[] = [];
    let at = offset;
    return new ReadableStream(
      {
        pull: async (controller) => {
          for (; at < end && ahead.length < STREAM_CHUNKS; at += STREAM_CHUNK_BYTES) {
            const chunk = this.read(at, Math.min(STREAM_CHUNK_BYTES, end - at), { signal });
            // Whoever pulls that far hears of the failure; nobody else has to.
            chunk.catch(() => {});
            ahead.push(chunk);
          }
          const chunk = ahead.shift();
          if (chunk === undefined) controller.close();
          else controller.enqueue(await chunk);
        },
        cancel: (reason) => cancelled.abort(reason),
      },
      { highWaterMark: 0 },
    );
  }

  /** Takes bytes from `offset` on, several writes under way; closing it flushes. */
  writable(options: ChangeOptions & { readonly offset?: number } = {}): WritableStream<Uint8Array> {
    let at = options.offset ?? 0;
    const underWay: Promise<void>[] = [];
    return new WritableStream({
      write: async (bytes) => {
        const write = this.write(at, bytes, options);
        write.catch(() => {});
        at += bytes.length;
        underWay.push(write);
        if (underWay.length === STREAM_CHUNKS) await underWay.shift();
      },
      close: async () => {
        await Promise.all(underWay);
        await this.flush(options);
      },
    });
  }

  /** Rejects what waits, ends what is under way, closes the store. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#transfers.refuse(new StoreError("ESHUTDOWN", "the disk is closed"));
    await this.#whole[Symbol.asyncDispose]();
    this.#transfers[Symbol.dispose]();
  }

  #check(offset: number, length: number, changes: boolean): void {
    if (this.#closed) throw new StoreError("ESHUTDOWN", "the disk is closed");
    const { size, readOnly } = this.info;
    if (changes && readOnly) throw new StoreError("EROFS", "the disk is read-only");
    if (
      !Number.isSafeInteger(offset) ||
      !Number.isSafeInteger(length) ||
      offset < 0 ||
      length < 0
    ) {
      throw new StoreError("EINVAL", `${offset}+${length} is no range of bytes`);
    }
    if (offset + length > size) {
      const range = `${length} bytes at ${offset} are not within the disk's ${size}`;
      throw new StoreError(changes ? "ENOSPC" : "EINVAL", range);
    }
  }

  #run(
    operation: Operation,
    flags: number,
    offset: number,
    length: number,
    bytes: Uint8Array | undefined,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    signal?.throwIfAborted();
    if (length === 0 && operation !== Operation.flush) return Promise.resolve();
    return this.#transfers.run(new Transfer(operation, flags, offset, length, bytes, signal));
  }
}

function durability(options: ChangeOptions): number {
  return options.forceUnitAccess === true ? RequestFlag.forceUnitAccess : 0;
}
