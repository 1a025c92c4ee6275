/**
 * The engine over io_uring: one system call for all that a round gathered; what the page cache answers completes
 * within that call, the rest wakes the event loop through the ring's descriptor.
 *
 * Invariant: a slot is free or holds one request with at most one entry in the kernel, and user_data is its number.
 */
import { performance } from "node:perf_hooks";
import {
  EAGAIN,
  EINTR,
  EIO,
  Engine,
  type IoFile,
  IoOperation,
  type IoRequest,
  MAXIMUM_RETRIES,
} from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import { FALLOCATE_MODE, POSIX_FADV_WILLNEED } from "./file-modes.ts";
import {
  IORING_OP_FADVISE,
  IORING_OP_FALLOCATE,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
  IoUring,
} from "./io-uring.ts";
import { goesAtOnce, needsThread, readCached, tookAtOnce } from "./page-cache.ts";
import { transfer } from "./plain-calls.ts";
import { type Watcher, watchReadable } from "./poller.ts";
import type { Reactor } from "./reactor.ts";
import { VectorTable } from "./vector-table.ts";

/** Requests in the kernel at once: eight disks of depth 32. More wait in their files' queues. */
const DEPTH = 256;

export class UringEngine extends Engine {
  override readonly name = "io_uring";
  readonly #calls: Ffi;
  readonly #ring: IoUring;
  readonly #watcher: Watcher;
  readonly #vectors = new VectorTable(DEPTH);
  readonly #requests = new Array<IoRequest | undefined>(DEPTH).fill(undefined);
  readonly #files = new Array<IoFile | undefined>(DEPTH).fill(undefined);
  readonly #operations = new Uint8Array(DEPTH);
  readonly #retries = new Uint8Array(DEPTH);
  /** Bytes of the request that are done. */
  readonly #done = new Float64Array(DEPTH);
  readonly #free = new Uint16Array(DEPTH);
  #freeCount = DEPTH;
  /** Requests in flight that the kernel has left to threads of its own. */
  #inThreads = 0;
  #prepared = false;
  #keepsAlive = false;

  constructor(reactor: Reactor, calls: Ffi) {
    super(reactor);
    this.#calls = calls;
    this.#ring = new IoUring(calls, DEPTH);
    for (let i = 0; i < DEPTH; i++) this.#free[i] = DEPTH - 1 - i;
    this.#watcher = watchReadable(this.#ring.descriptor, () => {
      this.#turn();
      this.reactor.settle();
    });
    this.#watcher.unref();
  }

  override close(): void {
    this.#watcher[Symbol.dispose]();
    this.#ring.close();
  }

  protected override work(budget: number): void {
    const round = budget;
    for (; budget > 0 && this.#freeCount > 0; budget--) {
      const file = this.nextFile();
      if (file === undefined) break;
      const request = this.take(file);
      const operation = file.owner.operationOf(request);
      if (operation === IoOperation.sync) this.sync(file, request);
      else if (!goesAtOnce(file, operation, request, round, this.#inThreads > 0)) {
        this.#start(file, request, operation, 0);
      } else if (operation === IoOperation.read) this.#readAtOnce(file, request);
      else this.#writeAtOnce(file, request);
    }
    this.#turn();
  }

  #readAtOnce(file: IoFile, request: IoRequest): void {
    const slot = this.#free[this.#freeCount - 1]!;
    const done = readCached(this.#calls, file, request, this.#vectors, slot);
    if (done === request.length) file.owner.finished(request, 0);
    else this.#start(file, request, IoOperation.read, done);
  }

  #writeAtOnce(file: IoFile, request: IoRequest): void {
    const slot = this.#free[this.#freeCount - 1]!;
    const began = performance.now();
    const result = transfer(this.#calls, file, request, IoOperation.write, this.#vectors, slot);
    tookAtOnce(file, performance.now() - began);
    file.owner.finished(request, result);
  }

  /** Hands the kernel what is left of a request of which `done` bytes are. */
  #start(file: IoFile, request: IoRequest, operation: IoOperation, done: number): void {
    const slot = this.#free[this.#freeCount - 1]!;
    this.#freeCount--;
    if (needsThread(file, operation)) this.#inThreads++;
    this.#requests[slot] = request;
    this.#files[slot] = file;
    this.#operations[slot] = operation;
    this.#retries[slot] = 0;
    this.#done[slot] = done;
    this.#prepare(slot);
  }

  /** Writes the entry for what is left of the slot's request. */
  #prepare(slot: number): void {
    const request = this.#requests[slot]!;
    const { descriptor } = this.#files[slot]!;
    const operation = this.#operations[slot]!;
    const { offset, length } = request;
    this.#prepared = true;
    const ring = this.#ring;
    if (operation === IoOperation.read || operation === IoOperation.write) {
      const done = this.#done[slot]!;
      const vectors = this.#vectors;
      vectors.fill(slot, request.segments!, request.segmentByte + done, length - done);
      const read = operation === IoOperation.read;
      if (vectors.count === 1) {
        const code = read ? IORING_OP_READ : IORING_OP_WRITE;
        const { firstAddress, byteLength } = vectors;
        ring.prepare(code, descriptor, firstAddress, byteLength, offset + done, 0, slot);
      } else {
        const code = read ? IORING_OP_READV : IORING_OP_WRITEV;
        const table = vectors.addressOf(slot);
        ring.prepare(code, descriptor, table, vectors.count, offset + done, 0, slot);
      }
    } else if (operation === IoOperation.prefetch) {
      ring.prepare(IORING_OP_FADVISE, descriptor, 0, length, offset, POSIX_FADV_WILLNEED, slot);
    } else {
      // The length of an fallocate lies where others have the address, its mode where they have the length.
      const mode = FALLOCATE_MODE[operation]!;
      ring.prepare(IORING_OP_FALLOCATE, descriptor, length, mode, offset, 0, slot);
    }
  }

  /** Submits, takes what is complete, and keeps the process alive while anything is in flight. */
  #turn(): void {
    this.#submit();
    this.#reap();
    this.#submit();
    const inFlight = this.#freeCount < DEPTH;
    if (inFlight === this.#keepsAlive) return;
    this.#keepsAlive = inFlight;
    if (inFlight) this.#watcher.ref();
    else this.#watcher.unref();
  }

  #submit(): void {
    if (!this.#prepared) return;
    this.#prepared = !this.#ring.submit();
    if (!this.#prepared) return;
    setImmediate(() => {
      this.#turn();
      this.reactor.settle();
    });
  }

  #reap(): void {
    const ring = this.#ring;
    while (ring.reap()) this.#completed(ring.userData, ring.result);
    if (this.waiting > 0 && this.#freeCount > 0) this.needKick();
  }

  #completed(slot: number, result: number): void {
    const operation = this.#operations[slot]!;
    const request = this.#requests[slot]!;
    if (result === -EINTR || result === -EAGAIN) {
      if (this.#retries[slot]!++ < MAXIMUM_RETRIES) {
        this.#prepare(slot);
        return;
      }
    } else if (result >= 0 && operation <= IoOperation.write) {
      const done = this.#done[slot]! + result;
      this.#done[slot] = done;
      if (done < request.length && result > 0) {
        this.#prepare(slot);
        return;
      }
      // Nothing read or written: the file ends inside the disk.
      if (done < request.length) result = -EIO;
    }
    const file = this.#files[slot]!;
    if (needsThread(file, operation as IoOperation)) this.#inThreads--;
    this.#requests[slot] = undefined;
    this.#files[slot] = undefined;
    this.#free[this.#freeCount++] = slot;
    file.owner.finished(request, result < 0 ? result : 0);
  }
}
