/** Requests for tests: each is watched from its submission to its end, and its memory is seen by nobody else. */
import { allocateRegion, type MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { allocateFor } from "../store/allocate-for.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  type RequestOwner,
} from "../store/block-store.ts";
import type { OperationName } from "../store/forwarding-store.ts";

export interface RequestShape {
  readonly operation: OperationName;
  /** Bytes. */
  readonly offset?: number;
  /** Bytes. */
  readonly length?: number;
  /** Bits of RequestFlag. */
  readonly flags?: number;
  /** What to write; its length is the request's. */
  readonly bytes?: Uint8Array;
  /** Bytes of each segment in turn, over and over; one segment if absent. */
  readonly segmentLengths?: readonly number[];
}

/** Bytes before and after each segment, that nobody may touch. */
const GUARD_BYTES = 8;
/** The same in memory that a store lends, which it may take page by page. */
const LENT_GUARD_BYTES = 4096;
const GUARD = 0xa5;

/** A request under way, and what was seen of it. */
export class WatchedRequest {
  readonly request: BlockRequest;
  readonly memory: MemoryRegion;
  /** Resolves to the status. */
  readonly ended: Promise<number>;
  completions = 0;
  /** It ended inside submit, which no store may do. */
  endedInsideSubmit = false;

  constructor(request: BlockRequest, memory: MemoryRegion, ended: Promise<number>) {
    this.request = request;
    this.memory = memory;
    this.ended = ended;
  }

  /** The data, gathered from its segments. */
  get bytes(): Uint8Array {
    const { segments, segmentByte, length } = this.request;
    const list = segments!;
    const parts: Uint8Array[] = [];
    for (let i = 0; i < list.count; i++) {
      const start = list.starts[i]!;
      parts.push(list.regions[i]!.bytes.subarray(start, start + list.lengths[i]!));
    }
    return Uint8Array.from(Buffer.concat(parts).subarray(segmentByte, segmentByte + length));
  }

  /** Whether the bytes around each segment are as they were. */
  get guardsHold(): boolean {
    const list = this.request.segments!;
    const bytes = Uint8Array.from(this.memory.bytes);
    for (let i = 0; i < list.count; i++) {
      const start = list.starts[i]!;
      bytes.fill(GUARD, start, start + list.lengths[i]!);
    }
    return bytes.every((byte) => byte === GUARD);
  }
}

/** Submits requests to one store. */
export class RequestRunner implements RequestOwner, Disposable {
  readonly store: BlockStore;
  readonly #reactor: Reactor;
  readonly #watched = new Map<
    BlockRequest,
    { watched: WatchedRequest; end(status: number): void }
  >();
  readonly #regions: MemoryRegion[] = [];
  /** Every second request has memory of the store, where that lends any. */
  #lends = false;
  #submitting: BlockRequest | undefined;

  constructor(store: BlockStore, reactor: Reactor) {
    this.store = store;
    this.#reactor = reactor;
  }

  /** Submits, and leaves kicking to the end of this turn. */
  submit(shape: RequestShape): WatchedRequest {
    const request = new BlockRequest(this);
    request.operation = Operation[shape.operation];
    request.offset = shape.offset ?? 0;
    request.length = shape.bytes?.length ?? shape.length ?? 0;
    request.flags = shape.flags ?? 0;
    const carries = shape.operation === "read" || shape.operation === "write";
    const memory = this.#fill(request, carries, shape);
    const { promise, resolve } = Promise.withResolvers<number>();
    const watched = new WatchedRequest(request, memory, promise);
    this.#watched.set(request, { watched, end: resolve });
    this.#submitting = request;
    this.store.submit(request);
    this.#submitting = undefined;
    this.#reactor.soon();
    return watched;
  }

  /** Resolves to the status. */
  run(shape: RequestShape): Promise<number> {
    return this.submit(shape).ended;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const watched = this.submit({ operation: "read", offset, length });
    const status = await watched.ended;
    if (status !== 0) throw new Error(`reading ${length} bytes at ${offset} ended with ${status}`);
    return watched.bytes;
  }

  async write(offset: number, bytes: Uint8Array, flags = 0): Promise<void> {
    const status = await this.run({ operation: "write", offset, bytes, flags });
    if (status !== 0) throw new Error(`writing at ${offset} ended with ${status}`);
  }

  completed(request: BlockRequest): void {
    const { watched, end } = this.#watched.get(request)!;
    watched.completions++;
    if (this.#submitting === request) watched.endedInsideSubmit = true;
    end(request.status);
  }

  #fill(request: BlockRequest, carries: boolean, shape: RequestShape): MemoryRegion {
    const lengths = carries ? cut(request.length, shape.segmentLengths) : [];
    this.#lends = !this.#lends && carries;
    const guard = this.#lends ? LENT_GUARD_BYTES : GUARD_BYTES;
    const total = lengths.reduce((sum, length) => sum + length + guard, guard);
    const memory = this.#lends ? allocateFor(this.store, total) : allocateRegion(total);
    this.#regions.push(memory);
    memory.bytes.fill(GUARD);
    const list = new SegmentList(Math.max(1, lengths.length));
    let start = guard;
    let done = 0;
    for (const length of lengths) {
      list.add(memory, start, length);
      if (shape.bytes !== undefined) {
        memory.bytes.set(shape.bytes.subarray(done, done + length), start);
      }
      start += length + guard;
      done += length;
    }
    request.segments = carries ? list : undefined;
    return memory;
  }

  /** Gives the memory of all requests back. They must have ended. */
  [Symbol.dispose](): void {
    for (const region of this.#regions.splice(0)) region[Symbol.dispose]();
  }
}

/** A request that carries no sane length carries no memory either. */
const LONGEST = 2 ** 26;

function cut(length: number, pattern: readonly number[] = [length]): number[] {
  if (!(length > 0 && length <= LONGEST)) return [];
  const lengths: number[] = [];
  for (let left = length, i = 0; left > 0; i++) {
    const piece = Math.min(left, pattern[i % pattern.length]!);
    lengths.push(piece);
    left -= piece;
  }
  return lengths;
}
