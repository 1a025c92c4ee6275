/**
 * The engine that every Node has: fs.readv and fs.writev, in libuv's threads, straight into the request's memory.
 * Where foreign calls exist (io_uring is often forbidden in containers), reads try the page cache first.
 *
 * It allocates views and a request object of Node's for every transfer; there is no other way through node:fs.
 */
import { readv, writev } from "node:fs";
import { EAGAIN, EINTR, EIO, Engine, type IoFile, IoOperation, type IoRequest } from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import type { SegmentList } from "./memory.ts";
import { readCached } from "./page-cache.ts";
import { adjust } from "./plain-calls.ts";
import type { Reactor } from "./reactor.ts";
import { VectorTable } from "./vector-table.ts";

/** Transfers in libuv's queue at once. It has four threads unless told otherwise; what waits here can be cancelled. */
const DEPTH = 64;
const EOPNOTSUPP = 95;

type Transfer = (
  descriptor: number,
  views: readonly Uint8Array[],
  position: number,
  done: (error: NodeJS.ErrnoException | null, count: number) => void,
) => void;

export class LibuvEngine extends Engine {
  override readonly name = "libuv";
  readonly #calls: Ffi | undefined;
  readonly #vectors: VectorTable | undefined;
  #inFlight = 0;

  constructor(reactor: Reactor, calls: Ffi | undefined) {
    super(reactor);
    this.#calls = calls;
    if (calls !== undefined) this.#vectors = new VectorTable(1);
  }

  override close(): void {
    // It has nothing but memory.
  }

  protected override work(budget: number): void {
    for (; budget > 0 && this.#inFlight < DEPTH; budget--) {
      const file = this.nextFile();
      if (file === undefined) return;
      const request = this.take(file);
      const operation = file.owner.operationOf(request);
      if (operation === IoOperation.sync) this.sync(file, request);
      else if (operation <= IoOperation.write) this.#start(file, request, operation);
      else this.#adjust(file, request, operation);
    }
  }

  #adjust(file: IoFile, request: IoRequest, operation: IoOperation): void {
    if (this.#calls !== undefined) adjust(this.#calls, this.reactor, file, request, operation);
    // Prefetching is a hint; the others are not offered without foreign calls.
    else file.owner.finished(request, operation === IoOperation.prefetch ? 0 : -EOPNOTSUPP);
  }

  #start(file: IoFile, request: IoRequest, operation: IoOperation): void {
    let done = 0;
    if (operation === IoOperation.read && this.#calls !== undefined) {
      done = readCached(this.#calls, file, request, this.#vectors!, 0);
      if (done === request.length) {
        file.owner.finished(request, 0);
        return;
      }
    }
    this.#inFlight++;
    this.#transfer(file, request, operation === IoOperation.read ? readv : writev, done);
  }

  #transfer(file: IoFile, request: IoRequest, call: Transfer, done: number): void {
    const { segments, segmentByte, offset, length } = request;
    const views = viewsOf(segments!, segmentByte + done, length - done);
    call(file.descriptor, views, offset + done, (error, count) => {
      if (error !== null) {
        const errno = error.errno ?? -EIO;
        if (errno === -EINTR || errno === -EAGAIN) this.#transfer(file, request, call, done);
        else this.#finish(file, request, errno);
      } else if (count === 0) this.#finish(file, request, -EIO);
      else if (done + count < length) this.#transfer(file, request, call, done + count);
      else this.#finish(file, request, 0);
    });
  }

  #finish(file: IoFile, request: IoRequest, result: number): void {
    this.#inFlight--;
    file.owner.finished(request, result);
    if (this.waiting > 0) this.needKick();
    this.reactor.settle();
  }
}

/** Views of [from, from + length) of the segments. */
function viewsOf(segments: SegmentList, from: number, length: number): Uint8Array[] {
  const views: Uint8Array[] = [];
  for (let i = 0; i < segments.count && length > 0; i++) {
    const available = segments.lengths[i]!;
    if (from >= available) {
      from -= available;
      continue;
    }
    const start = segments.starts[i]! + from;
    const bytes = Math.min(available - from, length);
    views.push(segments.regions[i]!.bytes.subarray(start, start + bytes));
    length -= bytes;
    from = 0;
  }
  return views;
}
