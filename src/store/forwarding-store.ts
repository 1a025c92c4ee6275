/**
 * Base class of filters: a store before another store. It passes on all that a filter does not change, except requests:
 * `submit` is the filter's own, so that none forgets an operation.
 *
 * A filter has three ways with a request. `this.next.submit(request)` hands it on untouched: its owner hears of it from
 * `next` directly. `forward` sends a child in its place, and `completed` sees the end of it. `answer` ends it here.
 *
 * Invariant: every request ends once, outside of `submit`; children live in a pool that grows to the depth in use.
 */
import type { MemoryRegion } from "../io/memory.ts";
import type { Kickable, Reactor } from "../io/reactor.ts";
import { Fifo } from "../util/fifo.ts";
import {
  BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  Operation,
  type RequestOwner,
  type StoreListener,
} from "./block-store.ts";
import { StoreError } from "./errors.ts";

export type OperationName = keyof typeof Operation;

/** Name by number. What a filter keeps for each operation is a Record<OperationName, ...>, which a new operation breaks
 * at compile time. */
export const operationNames: readonly OperationName[] = (
  Object.entries(Operation) as [OperationName, Operation][]
)
  .sort(([, left], [, right]) => left - right)
  .map(([name]) => name);

/** `values` by operation number, for the data plane. */
export function byOperation<T>(values: Readonly<Record<OperationName, T>>): readonly T[] {
  return operationNames.map((name) => values[name]);
}

export abstract class ForwardingStore implements BlockStore, RequestOwner, Kickable {
  protected readonly next: BlockStore;
  protected readonly reactor: Reactor;
  readonly #children = new Fifo<BlockRequest>();
  readonly #answers = new Fifo<BlockRequest>();
  #answerCount = 0;
  #dirty = false;
  readonly #onanswered: (() => void)[] = [];

  constructor(next: BlockStore, reactor: Reactor) {
    this.next = next;
    this.reactor = reactor;
  }

  get info(): BlockStoreInfo {
    return this.next.info;
  }

  abstract submit(request: BlockRequest): void;

  /** Sends a child that asks the same of `next`. */
  protected forward(parent: BlockRequest): void {
    const child = this.child(parent);
    child.offset = parent.offset;
    child.length = parent.length;
    child.segmentByte = parent.segmentByte;
    this.next.submit(child);
  }

  /** A child of the same operation, flags and memory. Its range is the caller's to set. */
  protected child(parent: BlockRequest): BlockRequest {
    const child = this.#children.shift() ?? new BlockRequest(this);
    child.operation = parent.operation;
    child.flags = parent.flags;
    child.segments = parent.segments;
    child.parent = parent;
    return child;
  }

  /** Gives a child back. Returns its parent. */
  protected recycle(child: BlockRequest): BlockRequest {
    const parent = child.parent!;
    child.parent = undefined;
    child.segments = undefined;
    this.#children.push(child);
    return parent;
  }

  /** A child has ended: so does its parent, alike. */
  completed(child: BlockRequest): void {
    const { status } = child;
    const parent = this.recycle(child);
    parent.status = status;
    parent.owner.completed(parent);
  }

  /** Ends a request here, at the next kick. */
  protected answer(request: BlockRequest, status: number): void {
    request.status = status;
    this.#answers.push(request);
    this.#answerCount++;
    if (this.#dirty) return;
    this.#dirty = true;
    this.reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    for (let left = this.#answerCount; left > 0; left--) {
      const request = this.#answers.shift()!;
      this.#answerCount--;
      request.owner.completed(request);
    }
    if (this.#answerCount === 0) for (const done of this.#onanswered.splice(0)) done();
  }

  allocate(byteLength: number): MemoryRegion | undefined {
    return this.next.allocate?.(byteLength);
  }

  extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    return this.next.extents(offset, length, signal);
  }

  resize(size: number, signal?: AbortSignal): Promise<void> {
    return this.next.resize(size, signal);
  }

  subscribe(listener: StoreListener): Disposable {
    return this.next.subscribe({
      ...(listener.resized === undefined ? {} : { resized: () => listener.resized?.(this.info) }),
      ...(listener.failed === undefined ? {} : { failed: (error) => listener.failed?.(error) }),
    });
  }

  /** A filter that holds requests back ends them first. */
  async cancel(reason: Error): Promise<void> {
    await this.next.cancel(reason);
    if (this.#answerCount === 0) return;
    await new Promise<void>((resolve) => {
      this.#onanswered.push(resolve);
      this.reactor.soon();
    });
  }

  /** A filter that holds more than requests releases it after this. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel(new StoreError("ESHUTDOWN", "the store is closed"));
    await this.next[Symbol.asyncDispose]();
  }
}
