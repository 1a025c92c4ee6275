/**
 * What carries requests to and from files: io_uring, pread or libuv, behind one class (engines.ts chooses).
 *
 * An engine belongs to one thread's Reactor and serves every file of that thread: requests wait in their file's
 * queue, and a kick starts one from each file in turn, so that no disk starves another. Invariant: `finished` is
 * called exactly once for each request, never inside `submit`, and after it the engine touches the request's memory
 * no more.
 */
import { fdatasync } from "node:fs";
import { Fifo } from "../util/fifo.ts";
import type { SegmentList } from "./memory.ts";
import type { Kickable, Reactor } from "./reactor.ts";

export const IoOperation = {
  read: 0,
  write: 1,
  /** fdatasync: covers what had finished when it was submitted. */
  sync: 2,
  /** Zeroes that free their blocks; the size of the file stays. */
  punchHole: 3,
  /** Zeroes whose blocks stay allocated. */
  zeroRange: 4,
  /** Blocks for a range, so that writing there cannot run out of space. */
  allocate: 5,
  /** Into the page cache, some time soon. */
  prefetch: 6,
} as const;
export type IoOperation = (typeof IoOperation)[keyof typeof IoOperation];

export type EngineName = "io_uring" | "pread" | "libuv";

/** What an engine wants of a request; a BlockRequest has this shape. */
export interface IoRequest {
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** Data of a read or write: [segmentByte, segmentByte + length) of it. */
  readonly segments: SegmentList | undefined;
  readonly segmentByte: number;
  /** The engine's while the request waits. */
  next: IoRequest | undefined;
}

export interface IoFileOwner {
  /** What to do for the request: asked when the engine starts it. */
  operationOf(request: IoRequest): IoOperation;
  /** `result` is 0 or a negative errno; a read or write that succeeds is complete, never short. */
  finished(request: IoRequest, result: number): void;
}

/** What stands between a file's requests and its disk. */
export const Caching = {
  /** O_DIRECT, or a file system that may wait for a server or another process (NFS, FUSE), for ever: any call may. */
  unknown: 0,
  /** The page cache, and a disk behind it. */
  disk: 1,
  /** There is no disk (tmpfs). */
  memory: 2,
} as const;
export type Caching = (typeof Caching)[keyof typeof Caching];

/** How a file has got on with the page cache. */
export class PageCacheState {
  /** Its file system answers a read that must not wait. */
  readsAtOnce = true;
  /** Reads left before the page cache is tried again after a miss. */
  missesLeft = 0;
  /** Writes left before one is done at once again after one that took long ... */
  stallLeft = 0;
  /** ... and how many that were; 0 where none has. */
  stall = 0;
}

/** An open file as engines see it. The owner closes the descriptor, when nothing is in flight. */
export class IoFile {
  readonly descriptor: number;
  readonly owner: IoFileOwner;
  readonly caching: Caching;
  /** What page-cache.ts knows of it. */
  readonly pageCache: PageCacheState = new PageCacheState();
  /** fdatasyncs under way. */
  syncs = 0;
  readonly waiting: Fifo<IoRequest> = new Fifo();
  /** In the engine's list of files that have requests waiting. */
  listed = false;
  next: IoFile | undefined = undefined;

  constructor(descriptor: number, owner: IoFileOwner, caching: Caching) {
    this.descriptor = descriptor;
    this.owner = owner;
    this.caching = caching;
  }
}

// Errnos that engines answer with themselves or react to (asm-generic/errno.h).
export const EINTR = 4;
export const EIO = 5;
export const EAGAIN = 11;
const ECANCELED = 125;

/** Times that one request may be interrupted or turned away before it fails. */
export const MAXIMUM_RETRIES = 100;

export abstract class Engine implements Kickable {
  abstract readonly name: EngineName;
  protected readonly reactor: Reactor;
  /** Requests that wait, of all files. */
  protected waiting = 0;
  readonly #files = new Fifo<IoFile>();
  #dirty = false;

  constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  /** Takes the request. The caller sees to it that the reactor settles. */
  submit(file: IoFile, request: IoRequest): void {
    file.waiting.push(request);
    this.waiting++;
    if (!file.listed) {
      file.listed = true;
      this.#files.push(file);
    }
    this.needKick();
  }

  kick(): void {
    this.#dirty = false;
    this.work(this.waiting);
  }

  /** Finishes with ECANCELED what has not been started. */
  cancel(file: IoFile): void {
    for (let request = file.waiting.shift(); request !== undefined; ) {
      this.waiting--;
      file.owner.finished(request, -ECANCELED);
      request = file.waiting.shift();
    }
  }

  /** Gives its descriptors and memory back. Nothing may be in flight. */
  abstract close(): void;

  /** Starts at most `budget` requests: what their completion submits has to wait for the next round. */
  protected abstract work(budget: number): void;

  /** The reactor will kick, in this settle or the next. */
  protected needKick(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.reactor.dirty(this);
  }

  /** The file whose turn it is, or undefined when nothing waits. The caller takes one request of it. */
  protected nextFile(): IoFile | undefined {
    for (let file = this.#files.shift(); file !== undefined; file = this.#files.shift()) {
      file.listed = false;
      if (!file.waiting.empty) return file;
    }
    return undefined;
  }

  protected take(file: IoFile): IoRequest {
    const request = file.waiting.shift()!;
    this.waiting--;
    if (!file.waiting.empty) {
      file.listed = true;
      this.#files.push(file);
    }
    return request;
  }

  /** fdatasync in libuv's threads for every engine: io_uring too would hand it to a thread, and here anyone can see
   * it happen. It takes the disk's time, next to which the closure is nothing. */
  protected sync(file: IoFile, request: IoRequest): void {
    file.syncs++;
    fdatasync(file.descriptor, (error) => {
      file.syncs--;
      file.owner.finished(request, error === null ? 0 : (error.errno ?? -EIO));
      this.reactor.settle();
    });
  }
}
