/**
 * A store of large blocks as one of smaller blocks: a request that does not begin and end on a block of the store below
 * is carried out by reading and writing back what it leaves of its first and last block.
 *
 * Invariants: while a block is read, changed and written back, no other change of it runs, nor begins while one that was
 * handed on runs; changes wait in the order they came. What is read beyond a request goes to memory of ours, never to
 * the owner's. Data is not copied: requests below point into the owner's memory, between the edges.
 */
import { allocateRegion, type MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { Fifo } from "../util/fifo.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  Operation,
  RequestFlag,
} from "./block-store.ts";
import { checkRequest } from "./check-request.ts";
import { Errno } from "./errors.ts";
import { ForwardingStore } from "./forwarding-store.ts";
import { RangeLocks } from "./range-locks.ts";

/** `store` with blocks of at most `blockBytes` (a power of two, 512 or more); itself where it has such already. Whoever
 * disposes either disposes both. */
export function align(store: BlockStore, blockBytes: number, reactor: Reactor): BlockStore {
  return store.info.block.minimum <= blockBytes
    ? store
    : new AligningStore(store, blockBytes, reactor);
}

const Stage = { readHead: 0, readTail: 1, whole: 2 } as const;
type Stage = (typeof Stage)[keyof typeof Stage];

/** A request on its way: its range widened to whole blocks. */
class Job {
  next: Job | undefined = undefined;
  parent: BlockRequest | undefined = undefined;
  stage: Stage = Stage.whole;
  /** Bytes of the disk. */
  start = 0;
  end = 0;
  /** Holds a lock on its range. */
  locked = false;
  generation = 0;
  segments: SegmentList = new SegmentList(16);
  readonly edge: SegmentList = new SegmentList(1);
  /** Two blocks: for what lies before and behind the request. */
  edges: MemoryRegion | undefined = undefined;
  /** Where the pool has it; the tag of its children. */
  readonly index: number;

  constructor(index: number) {
    this.index = index;
  }
}

class AligningStore extends ForwardingStore {
  readonly #blockBytes: number;
  readonly #locks = new RangeLocks();
  readonly #jobs: Job[] = [];
  readonly #free = new Fifo<Job>();
  /** Changes that wait for a lock. */
  readonly #waiting = new Fifo<Job>();
  #generation = 0;
  #seen: BlockStoreInfo | undefined = undefined;
  #info: BlockStoreInfo | undefined = undefined;

  constructor(next: BlockStore, blockBytes: number, reactor: Reactor) {
    super(next, reactor);
    this.#blockBytes = blockBytes;
  }

  override get info(): BlockStoreInfo {
    const seen = this.next.info;
    if (this.#seen !== seen || this.#info === undefined) {
      const { block, discard, native } = seen;
      this.#seen = seen;
      this.#info = {
        ...seen,
        block: {
          minimum: this.#blockBytes,
          preferred: block.preferred,
          // Room for the edges.
          maximum: Math.max(this.#blockBytes, block.maximum - 2 * block.minimum),
        },
        // The edges of a discard keep their data.
        discard: discard && {
          ...discard,
          granularity: Math.max(discard.granularity, block.minimum),
          secure: false,
          zeroes: false,
        },
        native: native.difference(new Set(["writeZeroes"])),
      };
    }
    return this.#info;
  }

  override submit(request: BlockRequest): void {
    const { operation, offset, length } = request;
    if (operation === Operation.flush) {
      this.next.submit(request);
      return;
    }
    const { minimum } = this.next.info.block;
    const whole = offset % minimum === 0 && length % minimum === 0;
    const changes = operation !== Operation.read && operation !== Operation.cache;
    if (whole && !changes) {
      this.next.submit(request);
      return;
    }
    const refusal = checkRequest(this.info, request);
    if (refusal !== 0) this.answer(request, refusal);
    else if (length === 0) this.answer(request, 0);
    else if (operation === Operation.writeZeroes) {
      // Written by whoever emulates.
      this.answer(request, Errno.EOPNOTSUPP);
    } else this.#begin(request, minimum, changes);
  }

  #begin(parent: BlockRequest, minimum: number, changes: boolean): void {
    const { operation, offset, length } = parent;
    const down = (byte: number) => byte - (byte % minimum);
    const up = (byte: number) => down(byte + minimum - 1);
    const inwards = operation === Operation.discard;
    const start = inwards ? up(offset) : down(offset);
    const end = inwards ? down(offset + length) : up(offset + length);
    if (start >= end) {
      // A discard within a block: it may stay.
      this.answer(parent, 0);
      return;
    }
    const job = this.#takeJob();
    job.parent = parent;
    job.start = start;
    job.end = end;
    job.locked = false;
    job.generation = this.#generation;
    parent.status = 0;
    if (!changes) this.#sendWhole(job);
    else if (this.#waiting.empty && this.#locks.tryLock(start, end)) this.#locked(job);
    else this.#waiting.push(job);
  }

  #takeJob(): Job {
    const free = this.#free.shift();
    if (free !== undefined) return free;
    const job = new Job(this.#jobs.length);
    this.#jobs.push(job);
    return job;
  }

  #locked(job: Job): void {
    job.locked = true;
    const parent = job.parent!;
    const { minimum } = this.next.info.block;
    if (parent.operation !== Operation.write) this.#sendWhole(job);
    else if (job.start < parent.offset) this.#readEdge(job, Stage.readHead, job.start);
    else if (job.end > parent.offset + parent.length) {
      this.#readEdge(job, Stage.readTail, job.end - minimum);
    } else this.#sendWhole(job);
  }

  /** Reads a block of which the request leaves something. */
  #readEdge(job: Job, stage: Stage, offset: number): void {
    const { minimum } = this.next.info.block;
    const edges = this.#edgesOf(job);
    job.stage = stage;
    job.edge.clear();
    job.edge.add(edges, stage === Stage.readHead ? 0 : minimum, minimum);
    const child = this.child(job.parent!);
    child.operation = Operation.read;
    child.flags = 0;
    child.offset = offset;
    child.length = minimum;
    child.segments = job.edge;
    child.segmentByte = 0;
    child.tag = job.index;
    this.next.submit(child);
  }

  #edgesOf(job: Job): MemoryRegion {
    job.edges ??= allocateRegion(2 * this.next.info.block.minimum);
    return job.edges;
  }

  /** Sends the widened request: the owner's memory between our edges. */
  #sendWhole(job: Job): void {
    const parent = job.parent!;
    const { operation } = parent;
    job.stage = Stage.whole;
    const child = this.child(parent);
    child.offset = job.start;
    child.length = job.end - job.start;
    child.tag = job.index;
    child.segmentByte = parent.segmentByte;
    const carriesData = operation === Operation.read || operation === Operation.write;
    if (carriesData && child.length !== parent.length) {
      child.segments = this.#widened(job, parent);
      child.segmentByte = 0;
    }
    if (operation === Operation.discard) child.flags &= ~RequestFlag.secure;
    this.next.submit(child);
  }

  #widened(job: Job, parent: BlockRequest): SegmentList {
    const { minimum } = this.next.info.block;
    const data = parent.segments!;
    if (job.segments.capacity < data.count + 2) job.segments = new SegmentList(data.count + 2);
    const list = job.segments;
    const edges = this.#edgesOf(job);
    const before = parent.offset - job.start;
    const behind = job.end - parent.offset - parent.length;
    list.clear();
    if (before > 0) list.add(edges, 0, before);
    let skip = parent.segmentByte;
    let left = parent.length;
    for (let i = 0; i < data.count && left > 0; i++) {
      const length = Math.min(data.lengths[i]! - skip, left);
      if (length > 0) list.add(data.regions[i]!, data.starts[i]! + skip, length);
      skip = Math.max(0, skip - data.lengths[i]!);
      left -= Math.max(0, length);
    }
    // The last block alone is the first one too where the request lies within it: then that was read.
    const tail = this.#tailIsHead(job, parent) ? minimum - behind : 2 * minimum - behind;
    if (behind > 0) list.add(edges, tail, behind);
    return list;
  }

  #tailIsHead(job: Job, parent: BlockRequest): boolean {
    return job.end - job.start === this.next.info.block.minimum && job.start < parent.offset;
  }

  override completed(child: BlockRequest): void {
    const { status, tag } = child;
    const job = this.#jobs[tag]!;
    const parent = this.recycle(child);
    const { minimum } = this.next.info.block;
    const cancelled = job.generation !== this.#generation;
    if (status !== 0) this.#end(job, status);
    else if (job.stage === Stage.whole) this.#end(job, 0);
    else if (cancelled) this.#end(job, Errno.ECANCELED);
    else if (
      job.stage === Stage.readHead &&
      job.end > parent.offset + parent.length &&
      !this.#tailIsHead(job, parent)
    ) {
      this.#readEdge(job, Stage.readTail, job.end - minimum);
    } else this.#sendWhole(job);
  }

  #end(job: Job, status: number): void {
    const parent = job.parent!;
    if (job.locked) this.#locks.unlock(job.start);
    job.parent = undefined;
    this.#free.push(job);
    for (let first = this.#waiting.peek(); first !== undefined; first = this.#waiting.peek()) {
      if (!this.#locks.tryLock(first.start, first.end)) break;
      this.#waiting.shift();
      this.#locked(first);
    }
    parent.status = status;
    parent.owner.completed(parent);
  }

  override async cancel(reason: Error): Promise<void> {
    this.#generation++;
    for (let job = this.#waiting.shift(); job !== undefined; job = this.#waiting.shift()) {
      this.answer(job.parent!, Errno.ECANCELED);
      job.parent = undefined;
      this.#free.push(job);
    }
    await super.cancel(reason);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    for (const job of this.#jobs) job.edges?.[Symbol.dispose]();
  }
}
