/**
 * So many random requests on a disk at once, for so long; what is read is looked at when it arrives, and what was written
 * at the end.
 *
 * Invariant: blocks have their turns in one shuffled order over and over, so that no two requests in flight touch the same
 * one, and what each page must hold is known exactly.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { type MemoryRegion, SegmentList } from "../../src/io/memory.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { allocateFor } from "../../src/store/allocate-for.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  type RequestOwner,
} from "../../src/store/block-store.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { assertPage, fillPages, isStamped, PAGE_BYTES, stamp, wordsOf } from "./stamps.ts";

export interface Workload {
  /** Of a hundred requests; the others write. */
  readonly readPercent: number;
  readonly blockBytes: number;
  /** Requests in flight. */
  readonly depth: number;
}

/** How often requests are dealt out to reading and writing before the dealing repeats. */
const DEALS = 1 << 12;
/** Pages compared to the last byte after a measurement. */
const PAGES_COMPARED = 256;

export class Load implements RequestOwner {
  readonly #store: BlockStore;
  readonly #reactor: Reactor;
  readonly #workload: Workload;
  readonly #memory: MemoryRegion;
  readonly #words: Uint32Array;
  readonly #requests: BlockRequest[] = [];
  /** Blocks in the order of their turns. */
  readonly #order: Uint32Array;
  #turn = 0;
  readonly #reads: Uint8Array;
  #deal = 0;
  /** How often each page was written; as it says itself. */
  readonly #written: Uint32Array;
  readonly #pagesPerBlock: number;
  #inFlight = 0;
  #completed = 0;
  #stopping = false;
  #fault: string | undefined = undefined;
  #ended: (() => void) | undefined = undefined;

  /** Works on the first `size` bytes of the disk, which hold stamped pages. */
  constructor(store: BlockStore, reactor: Reactor, workload: Workload, size: number, seed = 1) {
    const { blockBytes, depth, readPercent } = workload;
    this.#store = store;
    this.#reactor = reactor;
    this.#workload = workload;
    const random = new SeededRandom(seed);
    this.#order = shuffled(Math.floor(size / blockBytes), random);
    this.#reads = Uint8Array.from({ length: DEALS }, () => Number(random.below(100) < readPercent));
    this.#written = new Uint32Array(Math.ceil(size / PAGE_BYTES));
    this.#pagesPerBlock = blockBytes / PAGE_BYTES;
    this.#memory = allocateFor(store, depth * blockBytes);
    fillPages(this.#memory.bytes, 0);
    this.#words = wordsOf(this.#memory.bytes);
    for (let i = 0; i < depth; i++) {
      const request = new BlockRequest(this);
      request.tag = i;
      request.segments = new SegmentList(1);
      request.segments.add(this.#memory, i * blockBytes, blockBytes);
      this.#requests.push(request);
    }
  }

  /** What a disk holds that nobody has written to yet. */
  freshDisk(): Uint8Array {
    const bytes = new Uint8Array(this.#written.length * PAGE_BYTES);
    fillPages(bytes, 0);
    return bytes;
  }

  /** Resolves to the requests of a second. Rejects where one failed, or brought what it must not. */
  async run(seconds: number): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#ended = resolve;
    this.#completed = 0;
    this.#stopping = false;
    const began = performance.now();
    setTimeout(() => {
      this.#stopping = true;
    }, seconds * 1000);
    for (const request of this.#requests) this.#submit(request);
    this.#reactor.settle();
    await promise;
    const rate = (this.#completed / (performance.now() - began)) * 1000;
    if (this.#fault !== undefined) throw new Error(this.#fault);
    return rate;
  }

  #submit(request: BlockRequest): void {
    const { blockBytes } = this.#workload;
    const block = this.#order[this.#turn]!;
    this.#turn = this.#turn + 1 === this.#order.length ? 0 : this.#turn + 1;
    this.#deal = (this.#deal + 1) % DEALS;
    request.offset = block * blockBytes;
    request.length = blockBytes;
    if (this.#reads[this.#deal] === 1) request.operation = Operation.read;
    else {
      request.operation = Operation.write;
      this.#stampBlock(request.tag, block);
    }
    this.#inFlight++;
    this.#store.submit(request);
  }

  #stampBlock(tag: number, block: number): void {
    const pages = this.#pagesPerBlock;
    for (let i = 0; i < pages; i++) {
      const page = block * pages + i;
      const time = this.#written[page]! + 1;
      this.#written[page] = time;
      stamp(this.#words, (tag * pages + i) * (PAGE_BYTES / 4), page, time);
    }
  }

  completed(request: BlockRequest): void {
    this.#completed++;
    this.#inFlight--;
    if (request.status !== 0) this.#fault ??= `a request ended with errno ${request.status}`;
    else if (request.operation === Operation.read) this.#look(request);
    if (!this.#stopping && this.#fault === undefined) this.#submit(request);
    else if (this.#inFlight === 0) this.#ended!();
  }

  #look({ tag, offset }: BlockRequest): void {
    const pages = this.#pagesPerBlock;
    const first = offset / PAGE_BYTES;
    for (let i = 0; i < pages; i++) {
      const at = (tag * pages + i) * (PAGE_BYTES / 4);
      if (!isStamped(this.#words, at, first + i, this.#written[first + i]!)) {
        this.#fault ??= `page ${first + i} was read wrong`;
      }
    }
  }

  /** Compares what the last reads brought, to the last byte, and what the file behind the disk holds, where this wrote to
   * it. Throws where something is not as it must be. */
  verify(file?: string): void {
    const pages = this.#pagesPerBlock;
    let compared = 0;
    for (const { operation, offset, tag } of this.#requests) {
      if (operation !== Operation.read) continue;
      for (let i = 0; i < pages && compared < PAGES_COMPARED; i++, compared++) {
        const page = offset / PAGE_BYTES + i;
        assertPage(this.#words, (tag * pages + i) * (PAGE_BYTES / 4), page, this.#written[page]!);
      }
    }
    if (file !== undefined && this.#workload.readPercent < 100) this.#verifyFile(file);
  }

  #verifyFile(file: string): void {
    const chunk = new Uint8Array(1 << 20);
    const words = wordsOf(chunk);
    const descriptor = openSync(file, "r");
    try {
      for (let page = 0; page < this.#written.length; page++) {
        const at = (page * PAGE_BYTES) % chunk.length;
        if (at === 0) readSync(descriptor, chunk, 0, chunk.length, page * PAGE_BYTES);
        assertPage(words, at / 4, page, this.#written[page]!);
      }
    } finally {
      closeSync(descriptor);
    }
  }

  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
  }
}

function shuffled(count: number, random: SeededRandom): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [order[i], order[other]] = [order[other]!, order[i]!];
  }
  return order;
}
