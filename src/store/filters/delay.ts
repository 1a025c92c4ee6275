/** Makes a disk slow (nbdkit-delay-filter(1)): each request waits before it is handed on, none holds another up. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Reactor } from "../../io/reactor.ts";
import type { BlockRequest, BlockStore, Extent, StoreFilter } from "../block-store.ts";
import { timeParameter } from "../common-parameters.ts";
import { Errno } from "../errors.ts";
import { byOperation, ForwardingStore, type OperationName } from "../forwarding-store.ts";

/** Milliseconds, all of them. */
export interface DelayOptions {
  delay?: number;
  rdelay?: number;
  wdelay?: number;
  "delay-read"?: number;
  "delay-write"?: number;
  "delay-flush"?: number;
  "delay-trim"?: number;
  "delay-zero"?: number;
  "delay-cache"?: number;
  "delay-extents"?: number;
  "delay-open"?: number;
  "delay-close"?: number;
}

export const delayFilter: StoreFilter<DelayOptions> = {
  name: "delay",
  summary: "makes each request wait",
  parameters: {
    delay: timeParameter("For every operation that has no delay of its own."),
    rdelay: timeParameter("For reads."),
    wdelay: timeParameter("For writes, zeroes and trims."),
    "delay-read": timeParameter("For reads; the same as rdelay."),
    "delay-write": timeParameter("For writes alone."),
    "delay-flush": timeParameter("For flushes."),
    "delay-trim": timeParameter("For trims (discards)."),
    "delay-zero": timeParameter("For zeroes."),
    "delay-cache": timeParameter("For prefetching."),
    "delay-extents": timeParameter("Before the extents are told."),
    "delay-open": timeParameter("Before the disk opens."),
    "delay-close": timeParameter("Before the disk closes."),
  },
  async wrap(next, options, { reactor, signal }) {
    try {
      await sleep(options["delay-open"] ?? 0, undefined, { signal });
    } catch (error) {
      await next[Symbol.asyncDispose]();
      throw error;
    }
    return new DelayingStore(next, options, reactor);
  },
};

class DelayingStore extends ForwardingStore {
  /** Milliseconds by operation. */
  readonly #delays: readonly number[];
  readonly #extents: number;
  readonly #close: number;
  readonly #held = new Map<BlockRequest, NodeJS.Timeout>();
  #closing: Promise<void> | undefined;

  constructor(next: BlockStore, options: DelayOptions, reactor: Reactor) {
    super(next, reactor);
    const other = options.delay ?? 0;
    const write = options.wdelay ?? other;
    const delays: Record<OperationName, number> = {
      read: options["delay-read"] ?? options.rdelay ?? other,
      write: options["delay-write"] ?? write,
      flush: options["delay-flush"] ?? other,
      discard: options["delay-trim"] ?? write,
      writeZeroes: options["delay-zero"] ?? write,
      cache: options["delay-cache"] ?? other,
    };
    this.#delays = byOperation(delays);
    this.#extents = options["delay-extents"] ?? other;
    this.#close = options["delay-close"] ?? 0;
  }

  override submit(request: BlockRequest): void {
    const delay = this.#delays[request.operation];
    if (delay === undefined) this.answer(request, Errno.EOPNOTSUPP);
    else if (delay === 0) this.next.submit(request);
    else {
      // A timer each: whoever asks for delays pays for them.
      this.#held.set(
        request,
        setTimeout(() => this.#release(request), delay),
      );
    }
  }

  #release(request: BlockRequest): void {
    this.#held.delete(request);
    this.next.submit(request);
    this.reactor.settle();
  }

  override async *extents(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): AsyncIterable<Extent> {
    if (this.#extents > 0)
      await sleep(this.#extents, undefined, signal === undefined ? {} : { signal });
    yield* this.next.extents(offset, length, signal);
  }

  override async cancel(reason: Error): Promise<void> {
    for (const [request, timer] of this.#held) {
      clearTimeout(timer);
      this.answer(request, Errno.ECANCELED);
    }
    this.#held.clear();
    await super.cancel(reason);
  }

  override [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#dispose();
    return this.#closing;
  }

  async #dispose(): Promise<void> {
    if (this.#close > 0) await sleep(this.#close);
    await super[Symbol.asyncDispose]();
  }
}
