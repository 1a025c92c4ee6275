/**
 * Base class of drivers that do a request at once (memory, null, pattern, doubles in tests): it gathers requests and
 * does them at the next kick. Its subclass only says how one valid request is done.
 *
 * Invariant: a request is either in the batch or completed; nothing touches memory between kicks.
 */
import type { Kickable, Reactor } from "../io/reactor.ts";
import { Fifo } from "../util/fifo.ts";
import type {
  BlockRequest,
  BlockStore,
  BlockStoreInfo,
  Extent,
  StoreListener,
} from "./block-store.ts";
import { checkRequest } from "./check-request.ts";
import { SECTOR_SIZE } from "./common-parameters.ts";
import { Errno, StoreError } from "./errors.ts";
import { StoreListeners } from "./listeners.ts";

export abstract class BatchStore implements BlockStore, Kickable {
  readonly #reactor: Reactor;
  readonly #listeners = new StoreListeners();
  readonly #batch = new Fifo<BlockRequest>();
  #count = 0;
  #info: BlockStoreInfo;
  #dirty = false;
  #closed = false;
  /** Requests at the head of the batch that were cancelled before their kick. */
  #cancelled = 0;
  readonly #oncancelled: (() => void)[] = [];

  constructor(reactor: Reactor, info: BlockStoreInfo) {
    this.#reactor = reactor;
    this.#info = info;
  }

  get info(): BlockStoreInfo {
    return this.#info;
  }

  /** Does a request that `info` allows. Returns its status. */
  protected abstract execute(request: BlockRequest): number;

  abstract extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent>;

  /** Runs once, when no request is left and none will be done any more. */
  protected release(): void {}

  submit(request: BlockRequest): void {
    if (!this.#dirty) {
      this.#dirty = true;
      this.#reactor.dirty(this);
    }
    this.#count++;
    this.#batch.push(request);
  }

  kick(): void {
    this.#dirty = false;
    // What completions submit is the next batch.
    for (let left = this.#count; left > 0; left--) {
      const request = this.#batch.shift()!;
      this.#count--;
      request.status = this.#statusOf(request);
      request.owner.completed(request);
    }
    if (this.#cancelled > 0 || this.#oncancelled.length === 0) return;
    for (const done of this.#oncancelled.splice(0)) done();
  }

  #statusOf(request: BlockRequest): number {
    if (this.#cancelled > 0) {
      this.#cancelled--;
      return Errno.ECANCELED;
    }
    if (this.#closed) return Errno.ESHUTDOWN;
    const refusal = checkRequest(this.#info, request);
    return refusal === 0 ? this.execute(request) : refusal;
  }

  /** To be called by a subclass that can resize. */
  protected changeSize(size: number): void {
    const unit = Math.max(SECTOR_SIZE, this.#info.block.minimum);
    if (!Number.isSafeInteger(size) || size <= 0 || size % unit !== 0) {
      throw new StoreError("EINVAL", `${size} is not a size of whole blocks of ${unit} bytes`);
    }
    this.#info = { ...this.#info, size };
    this.#listeners.resized(this.#info);
  }

  async resize(_size: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    throw new StoreError("EOPNOTSUPP", "this disk has one size for ever");
  }

  subscribe(listener: StoreListener): Disposable {
    return this.#listeners.subscribe(listener);
  }

  async cancel(_reason: Error): Promise<void> {
    if (this.#count === 0) return;
    this.#cancelled = this.#count;
    await new Promise<void>((resolve) => {
      this.#oncancelled.push(resolve);
      this.#reactor.soon();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel(new StoreError("ESHUTDOWN", "the store is closed"));
    if (this.#closed) return;
    this.#closed = true;
    this.release();
  }
}
