/**
 * What people ask of a disk, cut into requests: any offset and length, in memory of their own, as a promise.
 *
 * Invariants: the memory of a request is the staging pool's, so an aborted promise rejects at once while the store still
 * has the request; transfers take turns, a piece each; a block that is read, changed and written back is not changed by
 * another transfer meanwhile.
 */
import { SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { Fifo } from "../util/fifo.ts";
import { allocateFor } from "./allocate-for.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  RequestFlag,
  type RequestOwner,
} from "./block-store.ts";
import { Errno, errnoName, StoreError } from "./errors.ts";
import { RangeLocks } from "./range-locks.ts";
import { copyFromSegments, copyToSegments, zeroSegments } from "./segments.ts";
import { SLOT_BYTES, StagingPool } from "./staging-pool.ts";

/** Bytes: large enough that promises and wake-ups cost nothing beside the copy, small enough to keep 16 in flight. */
const PIECE_BYTES = 256 * 1024;
/** More requests of one disk wait: no store of ours brings more of them to bear. */
const MAX_PIECES = 256;

/** One call. */
export class Transfer {
  readonly operation: Operation;
  readonly flags: number;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly end: number;
  /** The user's, for read and write. */
  readonly bytes: Uint8Array | undefined;
  readonly promise: Promise<void>;
  /** Up to here pieces have been sent. */
  at: number;
  inFlight = 0;
  /** The promise is done with: nothing of the user's is touched any more. */
  settled = false;
  locked = false;
  next: Transfer | undefined = undefined;
  #resolve!: () => void;
  #reject!: (error: unknown) => void;
  #signal: AbortSignal | undefined;
  #onabort: (() => void) | undefined;

  constructor(
    operation: Operation,
    flags: number,
    offset: number,
    length: number,
    bytes: Uint8Array | undefined,
    signal: AbortSignal | undefined,
  ) {
    this.operation = operation;
    this.flags = flags;
    this.offset = offset;
    this.at = offset;
    this.end = offset + length;
    this.bytes = bytes;
    this.#signal = signal;
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    if (signal !== undefined) {
      this.#onabort = () => this.reject(signal.reason);
      signal.addEventListener("abort", this.#onabort, { once: true });
    }
  }

  resolve(): void {
    if (this.#settle()) this.#resolve();
  }

  reject(error: unknown): void {
    if (this.#settle()) this.#reject(error);
  }

  #settle(): boolean {
    if (this.settled) return false;
    this.settled = true;
    if (this.#onabort !== undefined) this.#signal?.removeEventListener("abort", this.#onabort);
    return true;
  }
}

/** A request of a transfer, with its slots. */
class Piece {
  readonly request: BlockRequest;
  readonly slots: SegmentList = new SegmentList(PIECE_BYTES / SLOT_BYTES);
  transfer: Transfer | undefined = undefined;
  /** Where the user's bytes begin in the slots. */
  inSlots = 0;
  /** Where they begin in the user's memory. */
  inBytes = 0;
  /** How many there are. */
  count = 0;
  /** It reads the block that it will write. */
  fills = false;
  next: Piece | undefined = undefined;

  constructor(owner: RequestOwner, tag: number) {
    this.request = new BlockRequest(owner);
    this.request.tag = tag;
  }
}

/** The transfers of one disk. `store` has every operation (emulate.ts). */
export class TransferQueue implements RequestOwner {
  readonly #store: BlockStore;
  readonly #reactor: Reactor;
  readonly #pool: StagingPool;
  readonly #pieces: Piece[] = [];
  readonly #free = new Fifo<Piece>();
  /** For slots. */
  readonly #waiting = new Fifo<Transfer>();
  /** For another transfer's blocks, in order. */
  readonly #blocked = new Fifo<Transfer>();
  readonly #locks = new RangeLocks();
  #inFlight = 0;
  #ended = false;

  /** Throws StoreError("EINVAL") where the store's blocks are longer than any disk's. */
  constructor(store: BlockStore, reactor: Reactor) {
    const { minimum } = store.info.block;
    if (minimum > PIECE_BYTES) {
      throw new StoreError("EINVAL", `blocks of ${minimum} bytes are more than ${PIECE_BYTES}`);
    }
    this.#store = store;
    this.#reactor = reactor;
    this.#pool = new StagingPool((byteLength) => allocateFor(store, byteLength));
  }

  run(transfer: Transfer): Promise<void> {
    if (this.#blocked.empty ? this.#lock(transfer) : !this.#needsLock(transfer)) {
      this.#waiting.push(transfer);
      this.#send();
      this.#reactor.soon();
    } else this.#blocked.push(transfer);
    return transfer.promise;
  }

  /** Rejects what has not been sent. */
  refuse(error: Error): void {
    for (let t = this.#blocked.shift(); t !== undefined; t = this.#blocked.shift()) t.reject(error);
    for (let t = this.#waiting.shift(); t !== undefined; t = this.#waiting.shift()) {
      t.reject(error);
      this.#leave(t);
    }
  }

  /** Gives the memory back, once the store is closed and has let go of all of it. */
  [Symbol.dispose](): void {
    this.#ended = true;
    if (this.#inFlight === 0) this.#pool[Symbol.dispose]();
  }

  completed(request: BlockRequest): void {
    const piece = this.#pieces[request.tag]!;
    const transfer = piece.transfer!;
    if (piece.fills && request.status === 0 && !transfer.settled) {
      piece.fills = false;
      this.#put(piece, transfer);
      request.operation = Operation.write;
      request.flags = transfer.flags & RequestFlag.forceUnitAccess;
      this.#store.submit(request);
      return;
    }
    if (request.status !== 0) transfer.reject(errorOf(transfer, request.status));
    else if (request.operation === Operation.read && !transfer.settled) {
      const { slots, inSlots, inBytes, count } = piece;
      copyFromSegments(slots, inSlots, transfer.bytes!, inBytes, count);
    }
    this.#pool.give(piece.slots);
    piece.transfer = undefined;
    this.#free.push(piece);
    transfer.inFlight--;
    this.#inFlight--;
    this.#leave(transfer);
    this.#send();
    if (this.#ended && this.#inFlight === 0) this.#pool[Symbol.dispose]();
  }

  /** A piece of each waiting transfer in turn, as long as there are slots. */
  #send(): void {
    for (let t = this.#waiting.peek(); t !== undefined; t = this.#waiting.peek()) {
      if (!t.settled) {
        const piece = this.#takePiece();
        if (piece === undefined) return;
        if (!this.#plan(piece, t)) {
          this.#free.push(piece);
          return;
        }
        this.#launch(piece, t);
      }
      this.#waiting.shift();
      if (!t.settled && t.at < t.end) this.#waiting.push(t);
      else this.#leave(t);
    }
  }

  #takePiece(): Piece | undefined {
    const piece = this.#free.shift();
    if (piece !== undefined || this.#pieces.length === MAX_PIECES) return piece;
    const made = new Piece(this, this.#pieces.length);
    this.#pieces.push(made);
    return made;
  }

  /** Says what the next piece of a transfer asks for. False where there are no slots for it now. */
  #plan(piece: Piece, transfer: Transfer): boolean {
    const { request } = piece;
    const { block, size } = this.#store.info;
    const { minimum } = block;
    const { at, end, operation, flags } = transfer;
    const into = at % minimum;
    request.operation = operation;
    request.flags = flags;
    request.offset = at - into;
    piece.fills = false;
    piece.inSlots = into;
    piece.inBytes = at - transfer.offset;
    if (operation === Operation.read) {
      const stop = Math.min(Math.ceil(end / minimum) * minimum, size);
      request.length = Math.min(stop - request.offset, this.#longest());
      piece.count = Math.min(end - at, request.length - into);
      return this.#pool.take(piece.slots, request.length);
    }
    const whole = end - at - ((end - at) % minimum);
    if (operation === Operation.write || (operation === Operation.writeZeroes && minimum > 1)) {
      if (into > 0 || (whole === 0 && end > at)) {
        // Part of a block: it is read first.
        request.length = Math.min(minimum, size - request.offset);
        piece.count = Math.min(end - at, request.length - into);
        request.operation = Operation.read;
        request.flags = 0;
        piece.fills = true;
        return this.#pool.take(piece.slots, request.length);
      }
      if (operation === Operation.write) {
        request.length = Math.min(whole, this.#longest());
        piece.count = request.length;
        return this.#pool.take(piece.slots, request.length);
      }
    }
    request.length = operation === Operation.writeZeroes ? whole : end - at;
    piece.count = request.length;
    return true;
  }

  /** Bytes of whole blocks in one piece. */
  #longest(): number {
    const { minimum, maximum } = this.#store.info.block;
    const limit = Math.min(PIECE_BYTES, maximum);
    return limit - (limit % minimum);
  }

  #launch(piece: Piece, transfer: Transfer): void {
    const { request } = piece;
    if (request.operation === Operation.write) this.#put(piece, transfer);
    request.segments = piece.slots.count > 0 ? piece.slots : undefined;
    piece.transfer = transfer;
    transfer.at += piece.count;
    transfer.inFlight++;
    this.#inFlight++;
    this.#store.submit(request);
  }

  /** Copies the user's bytes, or zeroes, into the slots. */
  #put(piece: Piece, transfer: Transfer): void {
    const { slots, inSlots, inBytes, count } = piece;
    if (transfer.bytes === undefined) zeroSegments(slots, inSlots, count);
    else copyToSegments(transfer.bytes, inBytes, slots, inSlots, count);
  }

  /** Where blocks are longer than a byte, changes of a block take turns. */
  #needsLock({ operation, offset, end }: Transfer): boolean {
    if (this.#store.info.block.minimum === 1 || offset === end) return false;
    return operation !== Operation.read && operation !== Operation.cache;
  }

  /** False where another transfer has blocks of this one. */
  #lock(transfer: Transfer): boolean {
    if (!this.#needsLock(transfer)) return true;
    const { minimum } = this.#store.info.block;
    const start = transfer.offset - (transfer.offset % minimum);
    transfer.locked = this.#locks.tryLock(start, Math.ceil(transfer.end / minimum) * minimum);
    return transfer.locked;
  }

  /** After each step of a transfer: whether that was the last one. */
  #leave(transfer: Transfer): void {
    if (transfer.inFlight > 0 || (!transfer.settled && transfer.at < transfer.end)) return;
    transfer.resolve();
    if (!transfer.locked) return;
    transfer.locked = false;
    this.#locks.unlock(transfer.offset - (transfer.offset % this.#store.info.block.minimum));
    for (let t = this.#blocked.peek(); t !== undefined; t = this.#blocked.peek()) {
      if (!t.settled && !this.#lock(t)) return;
      this.#blocked.shift();
      if (!t.settled) this.#waiting.push(t);
    }
  }
}

const verbs = ["read", "write", "flush", "discard", "zero", "cache"] as const;

function errorOf({ operation, offset, end }: Transfer, status: number): StoreError {
  const range = operation === Operation.flush ? "" : ` ${end - offset} bytes at ${offset}`;
  const why = status === Errno.ECANCELED ? "the request was cancelled" : errnoName(status);
  return new StoreError(errnoName(status), `cannot ${verbs[operation]}${range}: ${why}`);
}
