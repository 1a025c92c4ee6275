/**
 * A store made of async functions: a new driver in twenty lines, where a promise for each request does not matter
 * (remote storage, tests).
 *
 * Invariants: the functions never see the memory of a request, only buffers of their own, so that a cancelled request
 * ends at once whatever its function still does; no more than `depth` of them run.
 */
import type { Kickable, Reactor } from "../io/reactor.ts";
import { threadReactor } from "../io/reactor.ts";
import { Fifo } from "../util/fifo.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  type NativeFeature,
  Operation,
  RequestFlag,
  type StoreListener,
} from "./block-store.ts";
import { checkRequest } from "./check-request.ts";
import { Errno, errnoOf, StoreError } from "./errors.ts";
import { checkExtentRange } from "./extents.ts";
import { StoreListeners } from "./listeners.ts";
import { copyFromSegments, copyToSegments } from "./segments.ts";

export interface ChangeFlags {
  readonly forceUnitAccess: boolean;
  readonly mayUnmap: boolean;
  readonly mustBeFast: boolean;
  readonly secure: boolean;
}

/** Every function may throw; an error whose `code` is an errno ends the request with that one, any other with EIO. The
 * signal aborts when the result is of no use any more. */
export interface PromiseStoreOptions {
  /** The thread's own if absent. */
  readonly reactor?: Reactor;
  /** Bytes. */
  readonly size: number;
  /** The disk is read-only where there is no `write`, or where this says so. */
  readonly readOnly?: boolean;
  /** Bytes; 1, 4096 and 1 MiB if absent. */
  readonly block?: Partial<BlockStoreInfo["block"]>;
  readonly discardGranularity?: number;
  /** What is discarded reads as zeroes. */
  readonly discardZeroes?: boolean;
  /** See BlockStoreInfo. */
  readonly shareable?: boolean;
  /** Functions that run at once; 16 if absent. */
  readonly depth?: number;
  readonly engine?: string;
  /** Resolves to exactly `length` bytes. */
  read(offset: number, length: number, signal: AbortSignal): Promise<Uint8Array> | Uint8Array;
  /** `bytes` are the function's own. Where there is `flush`, they need not be durable before it. */
  write?(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void>;
  /** Absent: what was written is durable. */
  flush?(signal: AbortSignal): Promise<void>;
  discard?(offset: number, length: number, flags: ChangeFlags, signal: AbortSignal): Promise<void>;
  writeZeroes?(
    offset: number,
    length: number,
    flags: ChangeFlags,
    signal: AbortSignal,
  ): Promise<void>;
  /** Absent: all is data. */
  extents?(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent>;
  resize?(size: number, signal?: AbortSignal): Promise<void>;
  close?(): Promise<void>;
}

/** A BlockStore that calls these functions. */
export function promiseStore(options: PromiseStoreOptions): BlockStore {
  return new PromiseStore(options);
}

function infoOf(options: PromiseStoreOptions): BlockStoreInfo {
  const native = new Set<NativeFeature>();
  if (options.flush !== undefined) native.add("flush");
  if (options.writeZeroes !== undefined) native.add("writeZeroes");
  if (options.extents !== undefined) native.add("extents");
  // Without a flush a write is durable when it ends.
  if (options.flush === undefined) native.add("forceUnitAccess");
  const { block, discardGranularity: granularity = 1, discardZeroes: zeroes = false } = options;
  return {
    size: options.size,
    readOnly: options.readOnly === true || options.write === undefined,
    block: { minimum: 1, preferred: 4096, maximum: 2 ** 20, ...block },
    discard:
      options.discard === undefined
        ? undefined
        : { granularity, alignment: 0, secure: false, zeroes },
    native,
    shareable: options.shareable === true,
    depth: options.depth ?? 16,
    engine: options.engine ?? "promise",
  };
}

class PromiseStore implements BlockStore, Kickable {
  readonly #options: PromiseStoreOptions;
  readonly #reactor: Reactor;
  readonly #listeners = new StoreListeners();
  readonly #waiting = new Fifo<BlockRequest>();
  readonly #running = new Set<BlockRequest>();
  #info: BlockStoreInfo;
  /** Of all that runs; another one after each cancellation. */
  #abort = new AbortController();
  #functions = 0;
  #dirty = false;
  #closing: Promise<void> | undefined;

  constructor(options: PromiseStoreOptions) {
    this.#options = options;
    this.#reactor = options.reactor ?? threadReactor();
    this.#info = infoOf(options);
  }

  get info(): BlockStoreInfo {
    return this.#info;
  }

  submit(request: BlockRequest): void {
    this.#waiting.push(request);
    this.#touch();
  }

  #touch(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    while (this.#functions < this.#info.depth) {
      const request = this.#waiting.shift();
      if (request === undefined) return;
      const refusal =
        this.#closing === undefined ? checkRequest(this.#info, request) : Errno.ESHUTDOWN;
      if (refusal !== 0) {
        request.status = refusal;
        request.owner.completed(request);
        continue;
      }
      this.#running.add(request);
      this.#functions++;
      void this.#run(request, this.#abort.signal);
    }
  }

  async #run(request: BlockRequest, signal: AbortSignal): Promise<void> {
    let status = 0;
    let bytes: Uint8Array | undefined;
    try {
      bytes = await this.#call(request, signal);
      if (bytes !== undefined && bytes.length !== request.length) status = Errno.EIO;
    } catch (error) {
      status = errnoOf(error);
    }
    this.#functions--;
    this.#touch();
    // A cancelled request is its owner's again.
    if (!signal.aborted) {
      if (bytes !== undefined && status === 0) {
        copyToSegments(bytes, 0, request.segments!, request.segmentByte, request.length);
      }
      this.#end(request, status);
    }
    this.#reactor.soon();
  }

  #end(request: BlockRequest, status: number): void {
    this.#running.delete(request);
    request.status = status;
    request.owner.completed(request);
  }

  async #call(request: BlockRequest, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const options = this.#options;
    const { operation, offset, length } = request;
    switch (operation) {
      case Operation.read:
        return length === 0 ? undefined : await options.read(offset, length, signal);
      case Operation.write: {
        if (length === 0) return undefined;
        const bytes = new Uint8Array(length);
        copyFromSegments(request.segments!, request.segmentByte, bytes, 0, length);
        await options.write!(offset, bytes, signal);
        return undefined;
      }
      case Operation.flush:
        await options.flush?.(signal);
        return undefined;
      case Operation.discard:
        if (options.discard === undefined) throw unsupported();
        await options.discard(offset, length, flagsOf(request), signal);
        return undefined;
      case Operation.writeZeroes:
        if (options.writeZeroes === undefined) throw unsupported();
        await options.writeZeroes(offset, length, flagsOf(request), signal);
        return undefined;
      case Operation.cache:
        return undefined;
    }
  }

  async *extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    if (this.#options.extents !== undefined) yield* this.#options.extents(offset, length, signal);
    else if (length > 0) yield { offset, length, hole: false, zero: false };
  }

  async resize(size: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (this.#options.resize === undefined) {
      throw new StoreError("EOPNOTSUPP", "this disk has one size for ever");
    }
    await this.#options.resize(size, signal);
    this.#info = { ...this.#info, size };
    this.#listeners.resized(this.#info);
  }

  subscribe(listener: StoreListener): Disposable {
    return this.#listeners.subscribe(listener);
  }

  async cancel(reason: Error): Promise<void> {
    // Not in the caller's turn: it may be in the middle of submitting.
    await undefined;
    this.#abort.abort(reason);
    this.#abort = new AbortController();
    for (const request of [...this.#running]) this.#end(request, Errno.ECANCELED);
    for (let r = this.#waiting.shift(); r !== undefined; r = this.#waiting.shift()) {
      r.status = Errno.ECANCELED;
      r.owner.completed(r);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.cancel(new StoreError("ESHUTDOWN", "the store is closed"));
    await this.#options.close?.();
  }
}

function unsupported(): StoreError {
  return new StoreError("EOPNOTSUPP", "the store cannot do this");
}

function flagsOf({ flags }: BlockRequest): ChangeFlags {
  return {
    forceUnitAccess: (flags & RequestFlag.forceUnitAccess) !== 0,
    mayUnmap: (flags & RequestFlag.mayUnmap) !== 0,
    mustBeFast: (flags & RequestFlag.mustBeFast) !== 0,
    secure: (flags & RequestFlag.secure) !== 0,
  };
}
