/**
 * O_DIRECT (open(2)) for requests whose memory does not lie as it wants: they go by way of memory that does.
 *
 * Invariants: the memory is one bounded pool; requests that find none free wait in order; a request is copied before it
 * is written and after it was read, never while the kernel has it.
 */
import { Caching, type Engine, IoFile, type IoFileOwner, IoOperation } from "../../../io/engine.ts";
import { SegmentList } from "../../../io/memory.ts";
import { Fifo } from "../../../util/fifo.ts";
import { type BlockRequest, Operation } from "../../block-store.ts";
import { Errno } from "../../errors.ts";
import { copyFromSegments, copyToSegments } from "../../segments.ts";
import { POOL_BYTES, SLOT_BYTES, StagingPool } from "../../staging-pool.ts";

/** Bytes of the longest request that goes this way. */
export const BOUNCED_BYTES: number = POOL_BYTES;

/** A request's double: the same range of the file, in our memory. */
class Bounce {
  request: BlockRequest | undefined = undefined;
  offset = 0;
  length = 0;
  segments: SegmentList = new SegmentList(4);
  readonly segmentByte: number = 0;
  next: Bounce | undefined = undefined;
}

export class Bouncer implements IoFileOwner, Disposable {
  readonly #engine: Engine;
  readonly #file: IoFile;
  readonly #mask: number;
  readonly #owner: { finished(request: BlockRequest, result: number): void };
  readonly #pool = new StagingPool();
  readonly #free = new Fifo<Bounce>();
  readonly #waiting = new Fifo<BlockRequest>();

  /** `alignment` in bytes, a power of two up to 4096: of addresses, and of the length of each segment. */
  constructor(
    engine: Engine,
    descriptor: number,
    alignment: number,
    owner: { finished(request: BlockRequest, result: number): void },
  ) {
    this.#engine = engine;
    this.#file = new IoFile(descriptor, this, Caching.unknown);
    this.#mask = alignment - 1;
    this.#owner = owner;
  }

  /** Whether the kernel would refuse the memory of a read or write. */
  needs({ segments, segmentByte }: BlockRequest): boolean {
    const list = segments!;
    const mask = this.#mask;
    let bits = segmentByte;
    for (let i = 0; i < list.count; i++) {
      bits |= ((list.regions[i]!.address + list.starts[i]!) % (mask + 1)) | list.lengths[i]!;
    }
    return (bits & mask) !== 0;
  }

  submit(request: BlockRequest): void {
    if (!this.#waiting.empty || !this.#start(request)) this.#waiting.push(request);
  }

  /** False where no memory is free. */
  #start(request: BlockRequest): boolean {
    const { offset, length } = request;
    const bounce = this.#free.shift() ?? new Bounce();
    const slots = Math.ceil(length / SLOT_BYTES);
    if (bounce.segments.capacity < slots) bounce.segments = new SegmentList(slots);
    if (!this.#pool.take(bounce.segments, length)) {
      this.#free.push(bounce);
      return false;
    }
    bounce.request = request;
    bounce.offset = offset;
    bounce.length = length;
    if (request.operation === Operation.write) copy(bounce, request);
    this.#engine.submit(this.#file, bounce);
    return true;
  }

  operationOf(bounce: Bounce): IoOperation {
    return bounce.request!.operation === Operation.write ? IoOperation.write : IoOperation.read;
  }

  finished(bounce: Bounce, result: number): void {
    const request = bounce.request!;
    if (result === 0 && request.operation === Operation.read) copy(bounce, request);
    this.#pool.give(bounce.segments);
    bounce.request = undefined;
    this.#free.push(bounce);
    for (let first = this.#waiting.peek(); first !== undefined; first = this.#waiting.peek()) {
      // Out of the queue first: its link becomes the engine's.
      this.#waiting.shift();
      if (this.#start(first)) continue;
      this.#waiting.unshift(first);
      break;
    }
    this.#owner.finished(request, result);
  }

  /** Finishes with ECANCELED what has not been started. */
  cancel(): void {
    for (let first = this.#waiting.shift(); first !== undefined; first = this.#waiting.shift()) {
      this.#owner.finished(first, -Errno.ECANCELED);
    }
    this.#engine.cancel(this.#file);
  }

  /** Nothing may be in flight. */
  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}

/** From the request's memory to ours, or back. */
function copy({ segments }: Bounce, request: BlockRequest): void {
  const writes = request.operation === Operation.write;
  const list = request.segments!;
  let from = request.segmentByte;
  let left = request.length;
  for (let i = 0; i < segments.count && left > 0; i++) {
    const { bytes } = segments.regions[i]!;
    const start = segments.starts[i]!;
    const piece = Math.min(left, segments.lengths[i]!);
    if (writes) copyFromSegments(list, from, bytes, start, piece);
    else copyToSegments(bytes, start, list, from, piece);
    from += piece;
    left -= piece;
  }
}
