/**
 * A disk in a raw file or on a block device. Reads and writes go to the thread's I/O engine (io/engines.ts), straight
 * from and into the memory of the request.
 *
 * Invariants: the image is never created, and its size is changed by `resize` alone (who changes it from outside is
 * noticed, and followed); a flush, and a write that asks to
 * be durable, completes after an fdatasync(2) that began when its data was written; after an fdatasync that failed,
 * no later one is believed, because the kernel forgets what it could not write.
 */
import { channel } from "node:diagnostics_channel";
import { fdatasync, ftruncate } from "node:fs";
import { promisify } from "node:util";
import { type Engine, IoFile, IoOperation } from "../../io/engine.ts";
import { chooseEngine, type EngineLease, leaseEngine } from "../../io/engines.ts";
import { ffi, ffiMissingReason } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import type { Reactor } from "../../io/reactor.ts";
import { Fifo } from "../../util/fifo.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  type NativeFeature,
  Operation,
  RequestFlag,
  type StoreContext,
  type StoreDriver,
  type StoreListener,
} from "../block-store.ts";
import { checkRequest } from "../check-request.ts";
import { switchParameter } from "../common-parameters.ts";
import { Errno, errnoName, StoreError } from "../errors.ts";
import { checkExtentRange } from "../extents.ts";
import { StoreListeners } from "../listeners.ts";
import { asStoreError, type Image, imageSize, openImage } from "./file/image.ts";
import { runsOf } from "./file/runs.ts";
import { SizeWatch } from "./file/size-watch.ts";

export type CacheMode = "writeback" | "none";

export interface FileOptions {
  file: string;
  cache: CacheMode;
  lock: boolean;
  shared: boolean;
}

export const fileDriver: StoreDriver<FileOptions> = {
  name: "file",
  summary: "a disk in a raw file or on a block device",
  parameters: {
    file: {
      help: "The image: a raw file or a block device. It must exist.",
      value: "FILE",
      parse: parsePath,
    },
    cache: {
      help: "writeback goes through the page cache; none goes past it (O_DIRECT).",
      value: "writeback|none",
      default: "writeback",
      parse: parseCacheMode,
    },
    lock: switchParameter("Lock the image against other writers, as QEMU does.", true),
    shared: switchParameter("A read-only disk lets others write to the image.", false),
  },
  positional: "file",
  open: openFileStore,
};

function parsePath(text: string): string {
  if (text === "" || text.includes("\0")) throw new Error("not the name of a file");
  return text;
}

function parseCacheMode(text: string): CacheMode {
  if (text === "writeback" || text === "none") return text;
  throw new Error("write writeback or none");
}

/** For people: what a disk does without. Messages are { driver, message }. */
const notes = channel("vbdkit:note");

async function openFileStore(options: FileOptions, context: StoreContext): Promise<BlockStore> {
  context.signal.throwIfAborted();
  const image = await openImage({
    path: options.file,
    readOnly: context.readOnly,
    direct: options.cache === "none",
    lock: options.lock,
    shared: options.shared,
  });
  try {
    context.signal.throwIfAborted();
    const name = engineFor(context, image);
    if (ffi() === undefined) {
      const message = `${image.path} has neither locks nor holes: they need foreign calls, and ${ffiMissingReason()}`;
      notes.publish({ driver: "file", message });
    }
    return new FileStore(context, image, leaseEngine(context.reactor, name));
  } catch (error) {
    await image[Symbol.asyncDispose]();
    throw error;
  }
}

function engineFor({ engine }: StoreContext, image: Image): Engine["name"] {
  try {
    return chooseEngine(engine, image);
  } catch (cause) {
    throw new StoreError("EOPNOTSUPP", (cause as Error).message, { cause });
  }
}

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

class FileStore implements BlockStore {
  readonly #reactor: Reactor;
  readonly #image: Image;
  readonly #lease: EngineLease;
  readonly #engine: Engine;
  readonly #file: IoFile;
  readonly #directFile: IoFile | undefined;
  readonly #alignmentMask: number;
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
  #inFlight = 0;
  #closed = false;
  #closing: Promise<void> | undefined;
  #syncFailed = false;
  #onidle: (() => void)[] = [];

  constructor(context: StoreContext, image: Image, lease: EngineLease) {
    this.#reactor = context.reactor;
    this.#image = image;
    this.#lease = lease;
    this.#engine = lease.engine;
    this.#file = new IoFile(image.descriptor, this, !image.inMemory);
    this.#alignmentMask = image.directAlignment - 1;
    if (image.directDescriptor !== undefined) {
      this.#directFile = new IoFile(image.directDescriptor, this, false);
    }
    this.#info = describe(image, context.readOnly, this.#engine.name);
  }

  get info(): BlockStoreInfo {
    return this.#info;
  }

  submit(request: BlockRequest): void {
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
    } else {
      request.status = Step.first;
      this.#engine.submit(this.#fileFor(request), request);
    }
  }

  /** Zeroes that a device would have to write out one by one. */
  #isSlowZero({ flags }: BlockRequest): boolean {
    const hasty = (flags & RequestFlag.mustBeFast) !== 0;
    return hasty && this.#image.isDevice && (flags & RequestFlag.mayUnmap) === 0;
  }

  /** O_DIRECT where the request lies as that wants it; the page cache, which the kernel keeps coherent, where not. */
  #fileFor(request: BlockRequest): IoFile {
    const direct = this.#directFile;
    if (direct === undefined || request.operation > Operation.write) return this.#file;
    const mask = this.#alignmentMask;
    let bits = (request.offset % (mask + 1)) | request.length | request.segmentByte;
    const list = request.segments!;
    for (let i = 0; i < list.count; i++) {
      bits |= ((list.regions[i]!.address + list.starts[i]!) % (mask + 1)) | list.lengths[i]!;
    }
    return (bits & mask) === 0 ? direct : this.#file;
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

  async resize(size: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const { path, isDevice, descriptor } = this.#image;
    if (isDevice) throw new StoreError("EOPNOTSUPP", `${path} is a device, of one size`);
    if (this.#info.readOnly) throw new StoreError("EROFS", `${path} is read-only`);
    if (!Number.isSafeInteger(size) || size <= 0 || size % 512 !== 0) {
      throw new StoreError("EINVAL", `${size} is no size of whole 512-byte sectors`);
    }
    const before = this.#info.size;
    this.#resizes++;
    try {
      if (size < before) {
        // A write in flight beyond the new end would make the file grow again: refuse new ones, wait for the others.
        this.#info = { ...this.#info, size };
        await this.#idle();
      }
      await promisify(ftruncate)(descriptor, size);
      // The new size must outlive a crash, as what is written there will.
      await promisify(fdatasync)(descriptor);
    } catch (error) {
      this.#info = { ...this.#info, size: before };
      throw asStoreError(error, `cannot resize ${path}`);
    } finally {
      this.#resizes++;
    }
    this.#info = { ...this.#info, size };
    this.#listeners.resized(this.#info);
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
    this.#engine.cancel(this.#file);
    if (this.#directFile !== undefined) this.#engine.cancel(this.#directFile);
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
    this.#lease[Symbol.dispose]();
    await this.#image[Symbol.asyncDispose]();
  }
}

function describe(image: Image, readOnly: boolean, engine: string): BlockStoreInfo {
  const { holeGranularity: granularity, isDevice } = image;
  const native = new Set<NativeFeature>(["flush", "forceUnitAccess", "cache"]);
  if (ffi() !== undefined && !isDevice) native.add("extents");
  // A file without holes may lack ZERO_RANGE too; the kernel zeroes any device.
  if (ffi() !== undefined && (isDevice || granularity !== undefined)) native.add("writeZeroes");
  return {
    size: image.size,
    readOnly,
    block: {
      minimum: isDevice ? image.blockBytes : 1,
      preferred: Math.max(4096, Math.min(image.blockBytes, 65536)),
      maximum: MAXIMUM_TRANSFER,
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
