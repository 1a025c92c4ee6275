/**
 * So many requests on a disk at once, each followed by another as soon as it is answered, and how long each of them took.
 *
 * Invariant: nothing is allocated for a request, and the clock is looked at once for each: the end of one is the beginning
 * of the next. What is in flight when the time is over is waited for and counted; when somebody asks to stop, it is not.
 */
import { performance } from "node:perf_hooks";
import { type MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { allocateFor } from "../store/allocate-for.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  type RequestOwner,
} from "../store/block-store.ts";
import { errnoName, StoreError } from "../store/errors.ts";
import { LatencyHistogram } from "../trace/latency-histogram.ts";
import { SeededRandom } from "../util/random.ts";
import type { BenchWorkload } from "./bench-plan.ts";

/** The same places in each run, as fio has them. */
const SEED = 1;

export class BenchLoad implements RequestOwner {
  readonly reads: LatencyHistogram = new LatencyHistogram();
  readonly writes: LatencyHistogram = new LatencyHistogram();
  readonly #store: BlockStore;
  readonly #reactor: Reactor;
  readonly #workload: BenchWorkload;
  /** Blocks of the part of the disk that is used. */
  readonly #blocks: number;
  readonly #random = new SeededRandom(SEED);
  #nextBlock = 0;
  readonly #memory: MemoryRegion;
  readonly #requests: BlockRequest[] = [];
  /** Milliseconds at which each request was submitted. */
  readonly #submitted: Float64Array;
  #inFlight = 0;
  #answered = 0;
  #going = false;
  /** Milliseconds; 0 until measuring begins, and until it ends. */
  #began = 0;
  #ended = 0;
  #usage: NodeJS.CpuUsage = { user: 0, system: 0 };
  #end = Promise.withResolvers<void>();

  /** Works on the first `bytes` of the disk. */
  constructor(store: BlockStore, reactor: Reactor, workload: BenchWorkload, bytes: number) {
    const { blockBytes, depth } = workload;
    this.#store = store;
    this.#reactor = reactor;
    this.#workload = workload;
    this.#blocks = Math.floor(bytes / blockBytes);
    this.#memory = allocateFor(store, depth * blockBytes);
    // What is written must not be easier to keep than data is.
    if (workload.readPercent < 100) fillRandomly(this.#memory.bytes);
    this.#submitted = new Float64Array(depth);
    for (let i = 0; i < depth; i++) {
      const request = new BlockRequest(this);
      request.tag = i;
      request.length = blockBytes;
      request.segments = new SegmentList(1);
      request.segments.add(this.#memory, i * blockBytes, blockBytes);
      this.#requests.push(request);
    }
  }

  /** Requests that the disk has. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Requests that were answered from the beginning on, those before measuring began, too. */
  get answered(): number {
    return this.#answered;
  }

  /** That were measured until now. */
  get milliseconds(): number {
    if (this.#began === 0) return 0;
    return (this.#ended === 0 ? performance.now() : this.#ended) - this.#began;
  }

  /** Processor time of this process in what was measured, in microseconds. */
  get usage(): NodeJS.CpuUsage {
    return this.#usage;
  }

  /** Begins; counts when `rampMilliseconds` have passed. Resolves when the time is over and everything was answered, or at
   * once when `signal` aborts. Rejects with a StoreError where a request failed. */
  async run(rampMilliseconds: number, milliseconds: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const stop = () => this.#end.resolve();
    signal.addEventListener("abort", stop);
    let timer = setTimeout(() => {
      this.#beginMeasuring();
      timer = setTimeout(() => {
        this.#going = false;
      }, milliseconds);
    }, rampMilliseconds);
    try {
      this.#going = true;
      this.#begin();
      await this.#end.promise;
      this.#endMeasuring();
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      this.#going = false;
    }
  }

  #begin(): void {
    const now = performance.now();
    for (const request of this.#requests) this.#submit(request, now);
    this.#reactor.soon();
  }

  #beginMeasuring(): void {
    this.reads.clear();
    this.writes.clear();
    this.#usage = process.cpuUsage();
    this.#began = performance.now();
  }

  #endMeasuring(): void {
    // Somebody may have had enough before it began.
    if (this.#began === 0) this.#beginMeasuring();
    this.#ended = performance.now();
    this.#usage = process.cpuUsage(this.#usage);
  }

  #submit(request: BlockRequest, now: number): void {
    const { readPercent, blockBytes } = this.#workload;
    const reads = readPercent === 100 || (readPercent > 0 && this.#random.below(100) < readPercent);
    request.operation = reads ? Operation.read : Operation.write;
    request.offset = this.#block() * blockBytes;
    this.#submitted[request.tag] = now;
    this.#inFlight++;
    this.#store.submit(request);
  }

  #block(): number {
    if (this.#workload.random) return this.#random.below(this.#blocks);
    const block = this.#nextBlock;
    this.#nextBlock = block + 1 === this.#blocks ? 0 : block + 1;
    return block;
  }

  completed(request: BlockRequest): void {
    const now = performance.now();
    this.#inFlight--;
    this.#answered++;
    if (request.status !== 0) {
      this.#fail(request);
      return;
    }
    const histogram = request.operation === Operation.read ? this.reads : this.writes;
    histogram.record((now - this.#submitted[request.tag]!) * 1000);
    if (this.#going) this.#submit(request, now);
    else if (this.#inFlight === 0) this.#end.resolve();
  }

  #fail({ operation, offset, status }: BlockRequest): void {
    this.#going = false;
    const code = errnoName(status);
    const what = operation === Operation.read ? "reading" : "writing";
    this.#end.reject(new StoreError(code, `${what} at ${offset} failed: ${code}`));
  }

  /** To be called when the disk has let go of every request. */
  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
  }
}

function fillRandomly(bytes: Uint8Array): void {
  const random = new SeededRandom(SEED);
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = random.below(2 ** 32);
}
