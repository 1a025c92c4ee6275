/**
 * What a store lacks, made once of what it has, so that neither drivers nor the sides of a ring carry their own copies:
 * zeroes by writing, forced unit access by a flush after the write, requests longer than the store takes by cutting.
 *
 * A request that the store does itself goes to it untouched: it costs a comparison or two. Everything else becomes a
 * job: a few children at a time, the first error ends it, a flush last where one is due.
 */
import { allocateRegion, type MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type NativeFeature,
  Operation,
  RequestFlag,
} from "./block-store.ts";
import { checkRequest } from "./check-request.ts";
import { Errno } from "./errors.ts";
import { ForwardingStore } from "./forwarding-store.ts";

/** Bytes. What an emulated store takes in one request: more than any protocol of ours carries. */
const MAXIMUM_LENGTH = 2 ** 30;
/** Bytes. Requests without data are cut here: NBD and others count such lengths in 32 bits. */
const MAXIMUM_RANGE = 2 ** 30;
/** Children of one request in flight: enough to keep a store busy, few enough that one request does not own it. */
const CHILDREN_IN_FLIGHT = 8;
/** Bytes of zeroes in one write. */
const ZERO_BYTES = 256 * 1024;

const all: ReadonlySet<NativeFeature> = new Set<NativeFeature>([
  "flush",
  "forceUnitAccess",
  "writeZeroes",
  "cache",
]);

/** `store` with every operation (discard stays as it is), and without a limit on length that anybody meets; itself
 * where it has all that already. Whoever disposes either disposes both. */
export function emulate(store: BlockStore, reactor: Reactor): BlockStore {
  return isComplete(store) ? store : new EmulatingStore(store, reactor);
}

function isComplete(store: BlockStore): boolean {
  if (store instanceof EmulatingStore) return true;
  const { native, block, discard } = store.info;
  if (discard === undefined && !store.info.readOnly) return false;
  return block.maximum >= MAXIMUM_LENGTH && all.isSubsetOf(native);
}

/** How a job goes on when its last child has ended. */
const Stage = { range: 0, flush: 1 } as const;
type Stage = (typeof Stage)[keyof typeof Stage];

/** A request that takes more than one child, or another operation than its own. */
class Job {
  parent: BlockRequest | undefined = undefined;
  stage: Stage = Stage.range;
  /** What the children ask for. */
  operation: Operation = Operation.read;
  flags = 0;
  segments: SegmentList | undefined = undefined;
  /** Bytes that a child covers at most. */
  step = 0;
  /** Bytes of the parent that were handed to children. */
  done = 0;
  inFlight = 0;
  flushes = false;
  /** Of the store's cancellations when the job began; a cancelled job sends no more children. */
  generation = 0;
  next: Job | undefined = undefined;
  /** Where the pool has it; the tag of its children. */
  readonly index: number;

  constructor(index: number) {
    this.index = index;
  }
}

class EmulatingStore extends ForwardingStore {
  /** Every job ever made, by index. */
  readonly #jobs: Job[] = [];
  #freeJobs: Job | undefined = undefined;
  #zeroes: { region: MemoryRegion; segments: SegmentList } | undefined = undefined;
  #generation = 0;
  #seen: BlockStoreInfo | undefined = undefined;
  #info: BlockStoreInfo | undefined = undefined;

  override get info(): BlockStoreInfo {
    const seen = this.next.info;
    if (this.#seen !== seen || this.#info === undefined) {
      this.#seen = seen;
      this.#info = {
        ...seen,
        block: { ...seen.block, maximum: Math.max(seen.block.maximum, MAXIMUM_LENGTH) },
        native: seen.native.union(all),
      };
    }
    return this.#info;
  }

  override submit(request: BlockRequest): void {
    const { native, block, discard, readOnly } = this.next.info;
    const { operation, flags, length } = request;
    const durable =
      (flags & RequestFlag.forceUnitAccess) !== 0 &&
      operation !== Operation.read &&
      !native.has("forceUnitAccess");
    switch (operation) {
      case Operation.read:
      case Operation.write:
        if (length <= block.maximum && !durable) this.next.submit(request);
        else this.#begin(request, operation, durable, cutAt(block.maximum, block.minimum));
        return;
      case Operation.flush:
        // Whoever has no flush has nothing to flush.
        if (native.has("flush")) this.next.submit(request);
        else this.answer(request, 0);
        return;
      case Operation.cache:
        if (!native.has("cache")) this.answer(request, 0);
        else if (length <= MAXIMUM_RANGE) this.next.submit(request);
        else this.#begin(request, operation, false, MAXIMUM_RANGE);
        return;
      case Operation.discard:
        if (readOnly) this.answer(request, Errno.EROFS);
        else if (discard === undefined || ((flags & RequestFlag.secure) !== 0 && !discard.secure)) {
          this.answer(request, Errno.EOPNOTSUPP);
        } else if (length <= MAXIMUM_RANGE && !durable) this.next.submit(request);
        else this.#begin(request, operation, durable, MAXIMUM_RANGE);
        return;
      case Operation.writeZeroes:
        this.#writeZeroes(request, durable);
        return;
      default:
        this.answer(request, Errno.EOPNOTSUPP);
    }
  }

  #writeZeroes(request: BlockRequest, durable: boolean): void {
    const { native, discard, readOnly } = this.next.info;
    if (readOnly) this.answer(request, Errno.EROFS);
    // A job, so that a store which finds out later that it cannot (a file system without holes) is helped.
    else if (native.has("writeZeroes")) {
      this.#begin(request, Operation.writeZeroes, durable, MAXIMUM_RANGE);
    } else if ((request.flags & RequestFlag.mayUnmap) !== 0 && discard?.zeroes === true) {
      this.#begin(request, Operation.discard, durable, MAXIMUM_RANGE);
    } else if ((request.flags & RequestFlag.mustBeFast) !== 0) {
      this.answer(request, Errno.EOPNOTSUPP);
    } else this.#begin(request, Operation.write, durable, 0);
  }

  #begin(parent: BlockRequest, operation: Operation, flushes: boolean, step: number): void {
    const refusal = checkRequest(this.info, parent);
    if (refusal !== 0) {
      this.answer(parent, refusal);
      return;
    }
    let job = this.#freeJobs;
    if (job === undefined) {
      job = new Job(this.#jobs.length);
      this.#jobs.push(job);
    } else this.#freeJobs = job.next;
    job.next = undefined;
    job.parent = parent;
    job.stage = Stage.range;
    job.done = 0;
    job.flushes = flushes;
    job.generation = this.#generation;
    job.flags = flushes ? parent.flags & ~RequestFlag.forceUnitAccess : parent.flags;
    job.segments = parent.segments;
    job.step = step;
    job.operation = operation;
    if (operation !== parent.operation) this.#substitute(job, operation);
    parent.status = 0;
    this.#advance(job);
    if (job.inFlight === 0) this.#end(job);
  }

  /** Zeroes by another operation. */
  #substitute(job: Job, operation: Operation): void {
    job.operation = operation;
    job.flags &= RequestFlag.forceUnitAccess;
    if (operation !== Operation.write) return;
    const { minimum, maximum } = this.next.info.block;
    job.step = cutAt(Math.min(maximum, ZERO_BYTES), minimum);
    job.segments = this.#zeroSegments(job.step);
  }

  /** Sends what may be sent now: more of the range, or the flush after it. */
  #advance(job: Job): void {
    const parent = job.parent!;
    if (job.generation !== this.#generation && parent.status === 0) {
      parent.status = Errno.ECANCELED;
    }
    while (parent.status === 0 && job.done < parent.length && job.inFlight < CHILDREN_IN_FLIGHT) {
      const child = this.#childOf(job, job.operation);
      child.offset = parent.offset + job.done;
      child.length = Math.min(job.step, parent.length - job.done);
      child.segments = job.segments;
      child.segmentByte = job.segments === parent.segments ? parent.segmentByte + job.done : 0;
      job.done += child.length;
      this.next.submit(child);
    }
    if (job.inFlight === 0 && parent.status === 0 && job.flushes && job.stage === Stage.range) {
      job.stage = Stage.flush;
      const child = this.#childOf(job, Operation.flush);
      child.flags = 0;
      child.offset = 0;
      child.length = 0;
      child.segments = undefined;
      child.segmentByte = 0;
      this.next.submit(child);
    }
  }

  #childOf(job: Job, operation: Operation): BlockRequest {
    const child = this.child(job.parent!);
    child.operation = operation;
    child.flags = job.flags;
    child.tag = job.index;
    job.inFlight++;
    return child;
  }

  override completed(child: BlockRequest): void {
    const { status, tag } = child;
    const job = this.#jobs[tag]!;
    const parent = this.recycle(child);
    job.inFlight--;
    if (parent.status === 0) parent.status = status;
    if (job.inFlight === 0 && this.#mayWriteInstead(job, parent)) {
      parent.status = 0;
      job.done = 0;
      this.#substitute(job, Operation.write);
    }
    this.#advance(job);
    if (job.inFlight > 0) return;
    this.#free(job);
    parent.owner.completed(parent);
  }

  /** Zeroes that the store said only now it cannot make. */
  #mayWriteInstead(job: Job, parent: BlockRequest): boolean {
    return (
      parent.status === Errno.EOPNOTSUPP &&
      parent.operation === Operation.writeZeroes &&
      job.operation !== Operation.write &&
      (parent.flags & RequestFlag.mustBeFast) === 0
    );
  }

  /** Ends a job that needed no child, or was cancelled before the first: not inside submit. */
  #end(job: Job): void {
    const parent = job.parent!;
    this.#free(job);
    this.answer(parent, parent.status);
  }

  #free(job: Job): void {
    job.parent = undefined;
    job.segments = undefined;
    job.next = this.#freeJobs;
    this.#freeJobs = job;
  }

  override cancel(reason: Error): Promise<void> {
    this.#generation++;
    return super.cancel(reason);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    this.#zeroes?.region[Symbol.dispose]();
    this.#zeroes = undefined;
  }

  #zeroSegments(length: number): SegmentList {
    if (this.#zeroes === undefined) {
      const region = allocateRegion(Math.max(length, ZERO_BYTES));
      const segments = new SegmentList(1);
      segments.add(region, 0, region.bytes.length);
      this.#zeroes = { region, segments };
    }
    return this.#zeroes.segments;
  }
}

/** The longest run of whole blocks of a store, or of its own minimum. */
function cutAt(maximum: number, minimum: number): number {
  return Math.max(minimum, maximum - (maximum % minimum));
}
