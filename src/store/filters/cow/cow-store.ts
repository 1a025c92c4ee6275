/**
 * The disk that the filter cow makes of a base and an overlay.
 *
 * Invariants: the base gets reads alone. A block is in the base, in the overlay, or zero; it moves when the request
 * that moves it has been done, and meanwhile no other change touches it, so that two writes to parts of one block do
 * not undo each other.
 */
import { allocateRegion, type MemoryRegion, SegmentList } from "../../../io/memory.ts";
import { Fifo } from "../../../util/fifo.ts";
import { BlockStates } from "../../block-states.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  Operation,
  RequestFlag,
  type StoreContext,
  type StoreListener,
} from "../../block-store.ts";
import { checkRequest } from "../../check-request.ts";
import { emulate } from "../../emulate.ts";
import { Errno, StoreError } from "../../errors.ts";
import { checkExtentRange, ExtentMerger } from "../../extents.ts";
import { ForwardingStore } from "../../forwarding-store.ts";
import { RangeLocks } from "../../range-locks.ts";
import { copyFromSegments, zeroBytes, zeroSegments } from "../../segments.ts";

/** Blocks being copied up at once; requests beyond wait. */
const COPIES = 16;

const State = { base: 0, overlay: 1, zero: 2 } as const;

/** What a child does for its parent; its tag. */
const Role = {
  /** Reads, or writes to blocks that are in the overlay. */
  plain: 0,
  /** Writes whole blocks, which then are in the overlay. */
  whole: 1,
  /** Gives blocks that have become zero back to the overlay. */
  trim: 2,
  /** From here on: the copy with that number less `copy`. */
  copy: 3,
} as const;

/** A block on its way up: from the base into a buffer, changed there, to the overlay. */
class Copy {
  readonly segments = new SegmentList(1);
  readonly region: MemoryRegion;
  readonly start: number;
  /** The change: where in the block, how long, and where in the parent's data. */
  inBlock = 0;
  length = 0;
  inParent = 0;
  filling = false;

  constructor(region: MemoryRegion, start: number, length: number) {
    this.region = region;
    this.start = start;
    this.segments.add(region, start, length);
  }
}

export class CowStore extends ForwardingStore {
  readonly #overlay: BlockStore;
  readonly #blockSize: number;
  readonly #states: BlockStates;
  readonly #info: BlockStoreInfo;
  readonly #locks = new RangeLocks();
  readonly #waiting = new Fifo<BlockRequest>();
  readonly #region: MemoryRegion;
  readonly #copies: Copy[] = [];
  readonly #freeCopies: number[] = [];
  #cancelling = 0;
  #closing: Promise<void> | undefined;

  constructor(base: BlockStore, overlay: BlockStore, blockSize: number, context: StoreContext) {
    super(emulate(base, context.reactor), context.reactor);
    const { size, block, depth } = base.info;
    this.#overlay = emulate(overlay, context.reactor);
    this.#blockSize = blockSize;
    this.#states = new BlockStates(Math.ceil(size / blockSize));
    this.#region = allocateRegion(COPIES * blockSize);
    for (let i = 0; i < COPIES; i++) {
      this.#copies.push(new Copy(this.#region, i * blockSize, blockSize));
      this.#freeCopies.push(i);
    }
    const minimum = Math.max(block.minimum, overlay.info.block.minimum);
    this.#info = {
      size: size - (size % minimum),
      readOnly: context.readOnly,
      block: { minimum, preferred: Math.max(minimum, 4096), maximum: 2 ** 30 },
      discard: { granularity: blockSize, alignment: 0, secure: false, zeroes: true },
      native: new Set(["flush", "forceUnitAccess", "writeZeroes", "extents"]),
      shareable: false,
      depth,
      ...(base.info.engine === undefined ? {} : { engine: base.info.engine }),
    };
  }

  override get info(): BlockStoreInfo {
    return this.#info;
  }

  override submit(request: BlockRequest): void {
    const refusal = checkRequest(this.#info, request);
    if (refusal !== 0) {
      this.answer(request, refusal);
      return;
    }
    switch (request.operation) {
      case Operation.read:
        this.#read(request);
        return;
      case Operation.write:
      case Operation.discard:
      case Operation.writeZeroes:
        if ((request.flags & RequestFlag.secure) !== 0) this.answer(request, Errno.EOPNOTSUPP);
        else if (this.#isPlain(request)) this.#overlay.submit(request);
        else if (!this.#waiting.empty || !this.#change(request)) this.#waiting.push(request);
        return;
      case Operation.flush:
        this.#overlay.submit(request);
        return;
      case Operation.cache:
        this.answer(request, 0);
        return;
      default:
        request.operation satisfies never;
    }
  }

  #read(parent: BlockRequest): void {
    const { offset, length } = parent;
    parent.status = 0;
    // One for this loop: no child ends the parent before all are sent.
    parent.childrenLeft = 1;
    for (let at = offset; at < offset + length; ) {
      const first = Math.floor(at / this.#blockSize);
      const last = Math.ceil((offset + length) / this.#blockSize);
      const stop = Math.min(offset + length, this.#states.runEnd(first, last) * this.#blockSize);
      const state = this.#states.get(first);
      if (state === State.zero) {
        zeroSegments(parent.segments!, parent.segmentByte + at - offset, stop - at);
      } else this.#send(parent, Role.plain, at, stop, state === State.base);
      at = stop;
    }
    this.#finish(parent, true);
  }

  /** A write to blocks that are in the overlay already moves none. Where a discard of them is under way, either comes
   * first: there is no order between requests in flight. */
  #isPlain({ operation, offset, length }: BlockRequest): boolean {
    if (operation !== Operation.write || length === 0) return false;
    const first = Math.floor(offset / this.#blockSize);
    const last = Math.ceil((offset + length) / this.#blockSize);
    return this.#states.get(first) === State.overlay && this.#states.runEnd(first, last) === last;
  }

  /** Begins a change that may move blocks. False where it has to wait for another one, or for a buffer. */
  #change(parent: BlockRequest): boolean {
    const { offset, length, operation, flags } = parent;
    const size = this.#blockSize;
    const end = offset + length;
    const first = Math.floor(offset / size);
    const last = Math.ceil(end / size);
    if (this.#locks.overlaps(first, last)) return false;
    // Parts of blocks that have to be copied up.
    const wholeFirst = Math.ceil(offset / size);
    const wholeEnd = end === this.#info.size ? last : Math.floor(end / size);
    const head = first < wholeFirst && this.#mustCopy(first, operation);
    const tail =
      wholeEnd < last &&
      (last - 1 > first || wholeFirst === first) &&
      this.#mustCopy(last - 1, operation);
    if ((head ? 1 : 0) + (tail ? 1 : 0) > this.#freeCopies.length) return false;
    if ((head || tail) && (flags & RequestFlag.mustBeFast) !== 0) {
      this.answer(parent, Errno.EOPNOTSUPP);
      return true;
    }
    parent.status = 0;
    parent.childrenLeft = 1;
    if (length > 0) this.#locks.tryLock(first, last);
    for (let at = offset; at < end; ) {
      const block = Math.floor(at / size);
      const isWhole = block >= wholeFirst && block < wholeEnd;
      const stop = isWhole ? Math.min(end, wholeEnd * size) : Math.min(end, (block + 1) * size);
      if (isWhole) this.#changeWhole(parent, at, stop, block, wholeEnd);
      else if (this.#mustCopy(block, operation)) this.#copyUp(parent, at, stop, block);
      else if (this.#states.get(block) === State.overlay) {
        this.#send(parent, Role.plain, at, stop, false);
      }
      at = stop;
    }
    this.#finish(parent, true);
    return true;
  }

  /** Whether changing a part of the block needs the rest of it. A zero block stays zero where zeroes are written. */
  #mustCopy(block: number, operation: Operation): boolean {
    const state = this.#states.get(block);
    return state === State.base || (state === State.zero && operation === Operation.write);
  }

  #changeWhole(parent: BlockRequest, at: number, stop: number, first: number, end: number): void {
    if (parent.operation === Operation.write) {
      this.#send(parent, Role.whole, at, stop, false);
      return;
    }
    for (let block = first; block < end; ) {
      const runEnd = this.#states.runEnd(block, end);
      const inOverlay = this.#states.get(block) === State.overlay;
      this.#states.set(block, runEnd, State.zero);
      if (inOverlay && this.#overlay.info.discard !== undefined) {
        const from = block * this.#blockSize;
        this.#send(parent, Role.trim, from, Math.min(stop, runEnd * this.#blockSize), false);
      }
      block = runEnd;
    }
  }

  #copyUp(parent: BlockRequest, at: number, stop: number, block: number): void {
    const index = this.#freeCopies.pop()!;
    const copy = this.#copies[index]!;
    const start = block * this.#blockSize;
    copy.inBlock = at - start;
    copy.length = stop - at;
    copy.inParent = at - parent.offset;
    copy.filling = this.#states.get(block) === State.base;
    const child = this.child(parent);
    child.tag = Role.copy + index;
    child.offset = start;
    child.length = Math.min(this.#blockSize, this.#info.size - start);
    child.segments = copy.segments;
    child.segmentByte = 0;
    parent.childrenLeft++;
    if (copy.filling) {
      child.operation = Operation.read;
      child.flags = 0;
      this.next.submit(child);
      return;
    }
    zeroBytes(copy.region.bytes, copy.start, child.length);
    this.#store(child, copy);
  }

  /** Makes the change in the buffer and writes the block to the overlay. */
  #store(child: BlockRequest, copy: Copy): void {
    const parent = child.parent!;
    const into = copy.start + copy.inBlock;
    const { bytes } = copy.region;
    if (parent.operation !== Operation.write) zeroBytes(bytes, into, copy.length);
    else {
      const from = parent.segmentByte + copy.inParent;
      copyFromSegments(parent.segments!, from, bytes, into, copy.length);
    }
    copy.filling = false;
    child.operation = Operation.write;
    child.flags = parent.flags & RequestFlag.forceUnitAccess;
    this.#overlay.submit(child);
  }

  #send(parent: BlockRequest, role: number, at: number, stop: number, toBase: boolean): void {
    const child = this.child(parent);
    child.tag = role;
    child.offset = at;
    child.length = stop - at;
    child.segmentByte = parent.segmentByte + at - parent.offset;
    if (role === Role.trim) {
      child.operation = Operation.discard;
      child.flags = 0;
    } else if (parent.operation === Operation.discard) {
      // The rest of a block: it must read as zeroes.
      child.operation = Operation.writeZeroes;
    }
    parent.childrenLeft++;
    if (toBase) this.next.submit(child);
    else this.#overlay.submit(child);
  }

  override completed(child: BlockRequest): void {
    const { tag, status, offset, length } = child;
    const parent = child.parent!;
    if (tag >= Role.copy) {
      const index = tag - Role.copy;
      const copy = this.#copies[index]!;
      if (copy.filling && status === 0 && this.#cancelling === 0) {
        this.#store(child, copy);
        return;
      }
      if (copy.filling && status === 0) parent.status ||= Errno.ECANCELED;
      this.#freeCopies.push(index);
    }
    // A discard that the overlay could not do leaves memory in use, nothing else.
    if (tag !== Role.trim) parent.status ||= status;
    const moves = tag === Role.whole || (tag >= Role.copy && child.operation === Operation.write);
    if (moves && status === 0) {
      const first = Math.floor(offset / this.#blockSize);
      this.#states.set(first, Math.ceil((offset + length) / this.#blockSize), State.overlay);
    }
    this.recycle(child);
    this.#finish(parent, false);
  }

  /** A child of the parent has ended; or, `starting`, all have been sent. */
  #finish(parent: BlockRequest, starting: boolean): void {
    if (--parent.childrenLeft > 0) return;
    const locked = parent.operation !== Operation.read && parent.length > 0;
    if (locked) this.#locks.unlock(Math.floor(parent.offset / this.#blockSize));
    if (starting) this.answer(parent, parent.status);
    else {
      parent.owner.completed(parent);
      if (locked) this.#resume();
    }
  }

  /** Begins what waited, in order, as far as it can. */
  #resume(): void {
    for (let r = this.#waiting.shift(); r !== undefined; r = this.#waiting.shift()) {
      if (this.#isPlain(r)) this.#overlay.submit(r);
      else if (!this.#change(r)) {
        this.#waiting.unshift(r);
        return;
      }
    }
  }

  override async *extents(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): AsyncIterable<Extent> {
    checkExtentRange(this, offset, length);
    const end = offset + length;
    const merger = new ExtentMerger();
    for (let at = offset; at < end; ) {
      signal?.throwIfAborted();
      const first = Math.floor(at / this.#blockSize);
      const state = this.#states.get(first);
      const runEnd = this.#states.runEnd(first, Math.ceil(end / this.#blockSize));
      const stop = Math.min(end, runEnd * this.#blockSize);
      if (state === State.base) {
        for await (const part of this.next.extents(at, stop - at, signal)) {
          const run = merger.add(part.offset, part.length, part.hole, part.zero);
          if (run !== undefined) yield run;
        }
      } else {
        const run = merger.add(at, stop - at, state === State.zero, state === State.zero);
        if (run !== undefined) yield run;
      }
      at = stop;
    }
    const last = merger.end();
    if (last !== undefined) yield last;
  }

  override async resize(): Promise<void> {
    throw new StoreError("EOPNOTSUPP", "a disk with cow has the size that the base had");
  }

  override subscribe(listener: StoreListener): Disposable {
    const failed = listener.failed?.bind(listener);
    return this.next.subscribe(failed === undefined ? {} : { failed });
  }

  override async cancel(reason: Error): Promise<void> {
    this.#cancelling++;
    for (let r = this.#waiting.shift(); r !== undefined; r = this.#waiting.shift()) {
      this.answer(r, Errno.ECANCELED);
    }
    await this.#overlay.cancel(reason);
    await super.cancel(reason);
    // A copy whose reading was done when we came may have been on its way to the overlay.
    await this.#overlay.cancel(reason);
    this.#cancelling--;
  }

  override [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#dispose();
    return this.#closing;
  }

  async #dispose(): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#overlay[Symbol.asyncDispose]();
    this.#region[Symbol.dispose]();
  }
}
