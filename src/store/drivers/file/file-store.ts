/**
 * A disk in a raw file or on a block device. Reads and writes go to the thread's I/O engine, straight from and into the
 * memory of the request, or by way of memory of ours where O_DIRECT cannot have that (bounce.ts).
 *
 * Invariants: the image's size is changed by `resize` alone (who changes it from outside is noticed, and followed); one
 * way leads to its bytes, the page cache or past it, never both; a flush, and a write that asks to be durable, completes
 * after an fdatasync(2) that began when its data was written; after an fdatasync that failed, no later one is believed,
 * because the kernel forgets what it could not write.
 */
import { fdatasync, ftruncate } from "node:fs";
import { promisify } from "node:util";
import { Caching, type Engine, IoFile, IoOperation } from "../../../io/engine.ts";
import type { EngineLease } from "../../../io/engines.ts";
import { ffi } from "../../../io/ffi.ts";
import { allocateRegion } from "../../../io/memory.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { Fifo } from "../../../util/fifo.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  type NativeFeature,
  Operation,
  RequestFlag,
  type StoreContext,
  type StoreListener,
} from "../../block-store.ts";
import { checkRequest } from "../../check-request.ts";
import { Errno, errnoName, StoreError } from "../../errors.ts";
import { checkExtentRange } from "../../extents.ts";
import { StoreListeners } from "../../listeners.ts";
import { BOUNCED_BYTES, Bouncer } from "./bounce.ts";
import { asStoreError, type Image, imageSize } from "./image.ts";
import { runsOf } from "./runs.ts";
import { SizeWatch } from "./size-watch.ts";

/** Bytes of one read or write; NBD's clients send no more. */
const MAXIMUM_TRANSFER = 32 << 20;
/** A hint for whoever submits: what a fast disk keeps busy with. */
const DEPTH = 128;
// <linux/fs.h>
const BLKDISCARD = 0x1277;

/** Steps of a request, kept in its `status` while it is in flight. */
const Step = {
  first: 0,
  /** The write is done; now it becomes durable. */
  sync: 1,
  /** The file system has no FALLOC_FL_ZERO_RANGE: zeroes by a hole ... */
  hole: 2,
  /** ... that gets its blocks back. */
  allocate: 3,
  /** The device cannot unmap these zeroes: write them out. */
  zeroes: 4,
} as const;

export class FileStore implements BlockStore {
  readonly #reactor: Reactor;
  readonly #image: Image;
  readonly #lease: EngineLease;
  readonly #engine: Engine;
  readonly #file: IoFile;
  /** For O_DIRECT. */
  readonly #bouncer: Bouncer | undefined;
  readonly #listeners = new StoreListeners();
  readonly #sizeWatch = new SizeWatch(
    () => this.#sizeNow(),
    (size) => this.#sizeSeen(size),
  );
  /** Counted when they begin and when they end. */
  #resizes = 0;
  /** What completes at the next kick without having been done; its status is set. */
  readonly #settled = new Fifo<BlockRequest>();
  #settledCount = 0;
  #dirty = false;
  #info: BlockStoreInfo;
  /** Those held back are not among them. */
  #inFlight = 0;
  /** What comes while the image gets smaller: it waits, so that the shrinking need not. */
  readonly #held = new Fifo<BlockRequest>();
  #holding = false;
  #lastResize: Promise<void> = Promise.resolve();
  #closed = false;
  #closing: Promise<void> | undefined;
  #syncFailed = false;
  #onidle: (() => void)[] = [];

  constructor(context: StoreContext, image: Image, lease: EngineLease) {
    this.#reactor = context.reactor;
    this.#image = image;
    this.#lease = lease;
    this.#engine = lease.engine;
    this.#file = new IoFile(image.descriptor, this, cachingOf(image));
    if (image.direct) {
      this.#bouncer = new Bouncer(this.#engine, image.descriptor, image.minimum, this);
    }
    this.#info = describe(image, context.readOnly, this.#engine.name);
  }

  get info(): BlockStoreInfo {
    return this.#info;
  }

  submit(request: BlockRequest): void {
    if (this.#holding) this.#held.push(request);
    else this.#admit(request);
  }

  #admit(request: BlockRequest): void {
    this.#inFlight++;
    const refusal = this.#closed ? Errno.ESHUTDOWN : checkRequest(this.#info, request);
    const { operation } = request;
    if (refusal !== 0 || (request.length === 0 && operation !== Operation.flush)) {
      this.#settle(request, refusal);
    } else if (operation === Operation.writeZeroes && this.#isSlowZero(request)) {
      this.#settle(request, Errno.EOPNOTSUPP);
    } else if (operation === Operation.discard && this.#info.discard === undefined) {
      this.#settle(request, Errno.EOPNOTSUPP);
    } else if (operation === Operation.discard && this.#image.isDevice) {
      this.#discardOnDevice(request);
    } else if (operation === Operation.cache && this.#bouncer !== undefined) {
      // The page cache is not where anyone will look.
      this.#settle(request, 0);
    } else {
      request.status = Step.first;
      const bounces = operation <= Operation.write && this.#bouncer?.needs(request) === true;
      if (bounces) this.#bouncer.submit(request);
      else this.#engine.submit(this.#file, request);
    }
  }

  /** Zeroes that a device would have to write out one by one. */
  #isSlowZero({ flags }: BlockRequest): boolean {
    const hasty = (flags & RequestFlag.mustBeFast) !== 0;
    return hasty && this.#image.isDevice && (flags & RequestFlag.mayUnmap) === 0;
  }

  /** BLKDISCARD waits for the device, so it does so in another thread. */
  #discardOnDevice(request: BlockRequest): void {
    const region = allocateRegion(16);
    const range = new DataView(region.bytes.buffer, region.bytes.byteOffset, 16);
    range.setBigUint64(0, BigInt(request.offset), true);
    range.setBigUint64(8, BigInt(request.length), true);
    request.status = Step.first;
    ffi()!.ioctlLater(this.#image.descriptor, BLKDISCARD, region.address, (result) => {
      region[Symbol.dispose]();
      this.finished(request, result < 0 ? -Errno.EIO : 0);
      this.#reactor.settle();
    });
  }

  operationOf(request: BlockRequest): IoOperation {
    switch (request.status) {
      case Step.sync:
        return IoOperation.sync;
      case Step.hole:
        return IoOperation.punchHole;
      case Step.allocate:
        return IoOperation.allocate;
      case Step.zeroes:
        return IoOperation.zeroRange;
    }
    switch (request.operation) {
      case Operation.read:
        return IoOperation.read;
      case Operation.write:
        return IoOperation.write;
      case Operation.flush:
        return IoOperation.sync;
      case Operation.discard:
        return IoOperation.punchHole;
      case Operation.writeZeroes:
        return request.flags & RequestFlag.mayUnmap ? IoOperation.punchHole : IoOperation.zeroRange;
      case Operation.cache:
        return IoOperation.prefetch;
    }
  }

  /** Called by the engine: goes on to the next step, or completes the request. */
  finished(request: BlockRequest, result: number): void {
    const { operation, status: step } = request;
    if (result < 0) {
      const next = result === -Errno.EOPNOTSUPP ? this.#instead(request) : undefined;
      if (next === "done") this.#succeeded(request);
      else if (next !== undefined) this.#goOn(request, next);
      else {
        if (step === Step.sync || operation === Operation.flush) {
          this.#syncFailed ||= result !== -Errno.ECANCELED;
        }
        this.#complete(request, statusOf(-result));
      }
    } else if (step === Step.hole) this.#goOn(request, Step.allocate);
    else this.#succeeded(request);
  }

  /** What to do where the system has no such operation: another step, nothing more, or (undefined) fail. */
  #instead({ operation, flags, status: step }: BlockRequest): number | "done" | undefined {
    // Hints may go unheard, and a hole in a file system that cannot allocate is still zeroes.
    if (operation === Operation.cache || step === Step.allocate) return "done";
    if (operation !== Operation.writeZeroes || step !== Step.first) return undefined;
    if (!this.#image.isDevice) return flags & RequestFlag.mayUnmap ? undefined : Step.hole;
    return flags & RequestFlag.mustBeFast ? undefined : Step.zeroes;
  }

  #succeeded(request: BlockRequest): void {
    const { operation, flags, status: step } = request;
    const durable = (flags & RequestFlag.forceUnitAccess) !== 0;
    const changes = operation !== Operation.read && operation !== Operation.cache;
    if (operation === Operation.flush || step === Step.sync) {
      this.#complete(request, this.#syncFailed ? Errno.EIO : 0);
    } else if (durable && changes) this.#goOn(request, Step.sync);
    else this.#complete(request, 0);
  }

  #goOn(request: BlockRequest, step: number): void {
    request.status = step;
    this.#engine.submit(this.#file, request);
  }

  /** Completes the request at the next kick. */
  #settle(request: BlockRequest, status: number): void {
    request.status = status;
    this.#settled.push(request);
    this.#settledCount++;
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    const count = this.#settledCount;
    this.#settledCount = 0;
    for (let i = 0; i < count; i++) {
      const request = this.#settled.shift()!;
      this.#complete(request, request.status);
    }
  }

  #complete(request: BlockRequest, status: number): void {
    request.status = status;
    this.#inFlight--;
    request.owner.completed(request);
    if (this.#inFlight === 0 && this.#onidle.length > 0) {
      for (const resolve of this.#onidle.splice(0)) resolve();
    }
  }

  async *extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    const calls = ffi();
    if (calls === undefined || this.#image.isDevice) {
      if (length > 0) yield { offset, length, hole: false, zero: false };
      return;
    }
    try {
      yield* runsOf(calls, this.#image.descriptor, offset, length, signal);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw asStoreError(error, `cannot list the extents of ${this.#image.path}`);
    }
  }

  resize(size: number, signal?: AbortSignal): Promise<void> {
    const resized = this.#lastResize.then(() => this.#resizeNow(size, signal));
    this.#lastResize = resized.catch(() => {});
    return resized;
  }

  async #resizeNow(size: number, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    const { path, isDevice, descriptor, sizeUnit } = this.#image;
    if (this.#closed) throw new StoreError("ESHUTDOWN", `${path} is closed`);
    if (isDevice) throw new StoreError("EOPNOTSUPP", `${path} is a device, of one size`);
    if (this.#info.readOnly) throw new StoreError("EROFS", `${path} is read-only`);
    if (!Number.isSafeInteger(size) || size <= 0 || size % sizeUnit !== 0) {
      throw new StoreError("EINVAL", `${size} is no size of whole blocks of ${sizeUnit} bytes`);
    }
    this.#resizes++;
    try {
      if (size < this.#info.size) await this.#shrink(size);
      else await promisify(ftruncate)(descriptor, size);
      this.#info = { ...this.#info, size };
      // The new size must outlive a crash, as what is written there will.
      await promisify(fdatasync)(descriptor).catch((error: unknown) => {
        this.#syncFailed = true;
        throw error;
      });
    } catch (error) {
      throw asStoreError(error, `cannot resize ${path}`);
    } finally {
      this.#resizes++;
      if (this.#info.size === size) this.#listeners.resized(this.#info);
    }
  }

  /** A write in flight beyond the new end would make the file grow again: it is awaited, and new requests are held back
   * meanwhile, or else there would always be another one to wait for. */
  async #shrink(size: number): Promise<void> {
    this.#holding = true;
    try {
      await this.#idle();
      await promisify(ftruncate)(this.#image.descriptor, size);
      this.#info = { ...this.#info, size };
    } finally {
      this.#holding = false;
      for (let held = this.#held.shift(); held !== undefined; held = this.#held.shift()) {
        this.#admit(held);
      }
      this.#reactor.soon();
    }
  }

  /** The size known where a resize of our own may have crossed the question. */
  async #sizeNow(): Promise<number> {
    const before = this.#resizes;
    const size = await imageSize(this.#image);
    return before % 2 === 0 && before === this.#resizes ? size : this.#info.size;
  }

  /** Somebody else made the image larger, or smaller. An empty one is on its way to be something else. */
  #sizeSeen(size: number): void {
    if (size === 0 || size === this.#info.size) return;
    this.#info = { ...this.#info, size };
    this.#listeners.resized(this.#info);
    this.#reactor.soon();
  }

  subscribe(listener: StoreListener): Disposable {
    const ends = new DisposableStack();
    ends.use(this.#listeners.subscribe(listener));
    if (listener.resized !== undefined) ends.use(this.#sizeWatch.watch());
    return ends;
  }

  async cancel(_reason: Error): Promise<void> {
    for (let held = this.#held.shift(); held !== undefined; held = this.#held.shift()) {
      this.#inFlight++;
      this.#settle(held, Errno.ECANCELED);
    }
    this.#bouncer?.cancel();
    this.#engine.cancel(this.#file);
    this.#reactor.soon();
    await this.#idle();
  }

  #idle(): Promise<void> {
    if (this.#inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onidle.push(resolve));
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#closed = true;
    this.#sizeWatch[Symbol.dispose]();
    await this.cancel(new StoreError("ESHUTDOWN", "the disk is closed"));
    // It would change a file that has got the descriptor meanwhile.
    await this.#lastResize;
    this.#lease[Symbol.dispose]();
    this.#bouncer?.[Symbol.dispose]();
    await this.#image[Symbol.asyncDispose]();
  }
}

function cachingOf({ direct, inMemory, onLocalDisk }: Image): Caching {
  if (direct) return Caching.unknown;
  if (inMemory) return Caching.memory;
  return onLocalDisk ? Caching.disk : Caching.unknown;
}

function describe(image: Image, readOnly: boolean, engine: string): BlockStoreInfo {
  const { holeGranularity: granularity, isDevice, direct, minimum } = image;
  const native = new Set<NativeFeature>(["flush", "forceUnitAccess"]);
  if (!direct) native.add("cache");
  if (ffi() !== undefined && !isDevice) native.add("extents");
  // A file without holes may lack ZERO_RANGE too; the kernel zeroes any device.
  if (ffi() !== undefined && (isDevice || granularity !== undefined)) native.add("writeZeroes");
  return {
    size: image.size,
    readOnly,
    block: {
      minimum,
      preferred: Math.max(4096, Math.min(image.blockBytes, 65536)),
      maximum: direct ? BOUNCED_BYTES : MAXIMUM_TRANSFER,
    },
    discard:
      granularity === undefined
        ? undefined
        : { granularity, alignment: 0, secure: false, zeroes: !isDevice },
    native,
    // The locks of two writers exclude one another.
    shareable: readOnly || !image.locked,
    depth: DEPTH,
    engine,
  };
}

const EDQUOT = 122;

/** A number of store/errors.ts: a full quota is a full disk to the guest, what we do not know is EIO. */
function statusOf(errno: number): number {
  return errno === EDQUOT ? Errno.ENOSPC : Errno[errnoName(errno)];
}
