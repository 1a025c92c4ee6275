/**
 * The storage port: what the split driver, the NBD server, drivers and filters know of a disk.
 *
 * Invariant: a request belongs to whoever submitted it until `completed` is called, exactly once and never inside
 * `submit`. There is no order between requests in flight: a flush covers what had completed when it was submitted.
 */
import type { MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import type { ParameterTable } from "./parameters.ts";

export const Operation = {
  read: 0,
  write: 1,
  flush: 2,
  discard: 3,
  writeZeroes: 4,
  cache: 5,
} as const;
export type Operation = (typeof Operation)[keyof typeof Operation];

/** Bits of `BlockRequest.flags`. */
export const RequestFlag = {
  /** Durable before completion (write, writeZeroes, discard). */
  forceUnitAccess: 1,
  /** The zeroes may become a hole (writeZeroes). */
  mayUnmap: 2,
  /** Fail with EOPNOTSUPP rather than write the zeroes out (writeZeroes). */
  mustBeFast: 4,
  /** The data must not come back (discard). */
  secure: 8,
} as const;

export interface RequestOwner {
  /** Called once for each request, from a kick or the event loop. May submit; need not settle. */
  completed(request: BlockRequest): void;
}

/** One pooled object of one shape. Its fields are the owner's before `submit` and after `completed`, the store's between. */
export class BlockRequest {
  operation: Operation = Operation.read;
  /** Bits of RequestFlag. */
  flags = 0;
  /** Bytes. */
  offset = 0;
  /** Bytes. */
  length = 0;
  /** Data of a read or write. Shared with children: this request covers [segmentByte, segmentByte + length) of it. */
  segments: SegmentList | undefined = undefined;
  segmentByte = 0;
  /** 0, or an errno of store/errors.ts. Set by the store. */
  status = 0;
  /** Free for the owner: slot number, index of a cookie. */
  tag = 0;
  /** The request that a filter cut or forwarded. */
  parent: BlockRequest | undefined = undefined;
  /** Children in flight, where a filter cut this request. */
  childrenLeft = 0;
  /** Link for whoever holds the request: a queue of them allocates nothing. */
  next: BlockRequest | undefined = undefined;
  readonly owner: RequestOwner;

  constructor(owner: RequestOwner) {
    this.owner = owner;
  }
}

/** What a store does itself; the rest is emulated once, in emulate.ts. */
export type NativeFeature = "flush" | "forceUnitAccess" | "writeZeroes" | "extents" | "cache";

export interface BlockStoreInfo {
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Bytes; offsets and lengths of requests are multiples of minimum, and reads and writes no longer than maximum. */
  readonly block: {
    readonly minimum: number;
    readonly preferred: number;
    readonly maximum: number;
  };
  /** Bytes, or undefined where the store cannot discard. */
  readonly discard:
    | {
        readonly granularity: number;
        readonly alignment: number;
        readonly secure: boolean;
        /** Every discarded byte reads as zero afterwards, whatever the alignment of the range. */
        readonly zeroes: boolean;
      }
    | undefined;
  readonly native: ReadonlySet<NativeFeature>;
  /** Two openings of one spec, in two threads or processes, see each other's completed writes, and a flush of one
   * covers both (NBD's multi-conn). */
  readonly shareable: boolean;
  /** Requests in flight beyond which more bring nothing; a hint: submit never refuses. */
  readonly depth: number;
  /** How the store reaches its bytes, for people: "io_uring", "pread", "memory" ... */
  readonly engine?: string;
}

/** A run of a disk with one allocation state (NBD base:allocation). */
export interface Extent {
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** Not allocated. */
  readonly hole: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
}

export interface StoreListener {
  resized?(info: BlockStoreInfo): void;
  /** The store answers EIO from now on. */
  failed?(error: Error): void;
}

/** A disk. It belongs to the thread that opened it. */
export interface BlockStore extends AsyncDisposable {
  readonly info: BlockStoreInfo;
  /** Takes the request; never completes it here and never refuses it: the pool it came from is the bound. */
  submit(request: BlockRequest): void;
  /** Zeroed memory, the caller's until its disposal, with which requests cost this store less than with any other (which does
   * as well): undefined where it has none to lend. Absent where all memory is alike. Whoever carries the requests out may
   * have it mapped, and keep it so: of a frontend the backend, and one before it that has not let go, can read and change
   * what is in it at any time (docs/frontend.md). */
  allocate?(byteLength: number): MemoryRegion | undefined;
  /** The extents that cover [offset, offset + length), in order, without gaps; the last may be cut to the range.
   * Rejects with a StoreError. */
  extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent>;
  /** Bytes; rejects with EOPNOTSUPP where the store has one size for ever. */
  resize(size: number, signal?: AbortSignal): Promise<void>;
  subscribe(listener: StoreListener): Disposable;
  /** Ends every request in flight, with ECANCELED where it has not been done; resolves when no memory is touched
   * any more. */
  cancel(reason: Error): Promise<void>;
}

/** Plain data: it crosses to a worker or another process, and is what every syntax parses to. */
export interface StoreSpec {
  readonly driver: string;
  readonly parameters: Readonly<Record<string, string>>;
  /** Outermost first: filters[0] is what the guest meets. */
  readonly filters: readonly FilterSpec[];
  /** The driver was guessed from the name: opening refuses an image whose first bytes tell of a format. */
  readonly guessed?: boolean;
}
export interface FilterSpec {
  readonly name: string;
  readonly parameters: Readonly<Record<string, string>>;
}

/** What opening a store is given: no driver reaches for a global clock, reactor or registry. */
export interface StoreContext {
  readonly reactor: Reactor;
  readonly signal: AbortSignal;
  /** Refuse writing, whatever the image would allow. */
  readonly readOnly: boolean;
  /** "auto", or the I/O engine the user named. */
  readonly engine: EngineChoice;
  /** Opens what a parameter names (an overlay, a leg, a backing file), so that no driver imports another. */
  open(spec: StoreSpec, options?: { readOnly?: boolean }): Promise<BlockStore>;
}
export type EngineChoice = "auto" | "io_uring" | "pread" | "libuv";

export interface StoreDriver<O> {
  readonly name: string;
  /** One line for lists. */
  readonly summary: string;
  readonly parameters: ParameterTable<O>;
  /** What a user may type first: `vbdkit serve file disk.img`. Names a key of `parameters`. */
  readonly positional?: string;
  open(options: O, context: StoreContext): Promise<BlockStore>;
}

/** A filter owns `next` from the call on, also when wrap fails. A format (qcow2, vhd, luks) is a filter over its container. */
export interface StoreFilter<O> {
  readonly name: string;
  readonly summary: string;
  readonly parameters: ParameterTable<O>;
  /** What it stands before is never written, and so opened read-only. */
  readonly onlyReads?: boolean;
  wrap(next: BlockStore, options: O, context: StoreContext): Promise<BlockStore>;
}
