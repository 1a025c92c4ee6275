/**
 * What any BlockStore must do, as tests of node:test: a driver, a filter or a side of a ring passes it, or it is none.
 *
 * Random tests say their seed in the failure; `seed` repeats them.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { allocateRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { BlockRequest, type BlockStore, RequestFlag } from "../store/block-store.ts";
import { emulate } from "../store/emulate.ts";
import { Errno } from "../store/errors.ts";
import { SeededRandom } from "../util/random.ts";
import { RequestRunner, type RequestShape, type WatchedRequest } from "./requests.ts";
import { runModel } from "./store-model.ts";

export interface OpenedStore {
  readonly store: BlockStore;
  readonly reactor: Reactor;
  /** After the disposal of `store`: the same disk once more. Absent where it is gone then. */
  reopen?(): Promise<OpenedStore>;
}

export interface StoreSuiteOptions {
  /** A fresh disk of at least 64 KiB each time; the suite disposes it. */
  open(): Promise<OpenedStore>;
  /** The disk refuses changes. */
  readonly readOnly?: boolean;
  /** It forgets what is written, or cannot say what it will read as. */
  readonly forgets?: boolean;
  /** What a fresh disk holds; zeroes if absent. */
  contents?(offset: number, length: number): Uint8Array;
  /** Bytes at the start of the disk that the suite uses; all of it, at most 1 MiB, if absent. */
  readonly usedBytes?: number;
  /** Of the random tests; another one each time if absent. */
  readonly seed?: number;
}

/** A test that takes longer hangs. */
const TIMEOUT_MILLISECONDS = 30_000;
const DEPTH = 32;
/** Requests one after another: enough to overflow a stack, if completions recursed, in stores that are fast. */
const CHAIN = 2000;
/** Longer than any late write of a cancelled request would take. */
const LATE_MILLISECONDS = 30;

export function storeSuite(name: string, options: StoreSuiteOptions): void {
  const suite = new StoreSuite(name, options);
  suite.everyDisk();
  if (options.readOnly === true) suite.readOnlyDisk();
  else {
    suite.writableDisk();
    if (options.forgets !== true) suite.rememberingDisk();
  }
}

/** A fresh disk with its runner, which both end with the test. */
class Bench implements AsyncDisposable {
  readonly opened: OpenedStore;
  readonly store: BlockStore;
  readonly runner: RequestRunner;
  /** With every operation. */
  readonly whole: RequestRunner;
  /** Bytes that the tests use, whole blocks. */
  readonly used: number;
  readonly unit: number;

  constructor(opened: OpenedStore, options: StoreSuiteOptions) {
    this.opened = opened;
    this.store = opened.store;
    this.runner = new RequestRunner(opened.store, opened.reactor);
    this.whole = new RequestRunner(emulate(opened.store, opened.reactor), opened.reactor);
    this.unit = opened.store.info.block.minimum;
    const used = Math.min(options.usedBytes ?? 2 ** 20, opened.store.info.size);
    this.used = used - (used % this.unit);
  }

  /** Bytes: `count` blocks of at least 512. */
  blocks(count: number): number {
    return count * Math.max(512, this.unit);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.store[Symbol.asyncDispose]();
    this.runner[Symbol.dispose]();
    this.whole[Symbol.dispose]();
  }
}

class StoreSuite {
  readonly #name: string;
  readonly #options: StoreSuiteOptions;
  readonly #seed: number;

  constructor(name: string, options: StoreSuiteOptions) {
    this.#name = name;
    this.#options = options;
    this.#seed = options.seed ?? Math.floor(Math.random() * 2 ** 31);
  }

  #test(sentence: string, body: (bench: Bench) => Promise<void>): void {
    test(`${this.#name} ${sentence}`, { timeout: TIMEOUT_MILLISECONDS }, async () => {
      await using bench = new Bench(await this.#options.open(), this.#options);
      await body(bench);
    });
  }

  #contents(offset: number, length: number): Uint8Array {
    return this.#options.contents?.(offset, length) ?? new Uint8Array(length);
  }

  /** Reads at every depth, and whatever else a disk must take. */
  #load({ unit, used, store }: Bench): RequestShape[] {
    const length = Math.min(Math.max(4096, unit), used);
    const shapes: RequestShape[] = [];
    for (let i = 0; i < DEPTH; i++) {
      const offset = (i * length) % (used - length + unit);
      shapes.push({ operation: "read", offset: offset - (offset % unit), length });
      if (i % 8 === 0 && store.info.native.has("flush")) shapes.push({ operation: "flush" });
    }
    return shapes;
  }

  everyDisk(): void {
    this.#test("describes itself in numbers that fit together", async ({ store }) => {
      const { size, block, depth, discard, readOnly } = store.info;
      assert.ok(Number.isSafeInteger(size) && size >= 65536, `size ${size}`);
      assert.ok(Number.isInteger(Math.log2(block.minimum)), `minimum ${block.minimum}`);
      assert.ok(block.minimum <= block.preferred && block.preferred <= block.maximum);
      assert.equal(block.preferred % block.minimum, 0);
      assert.equal(size % block.minimum, 0);
      assert.ok(depth >= 1);
      assert.equal(readOnly, this.#options.readOnly === true);
      if (discard !== undefined) assert.ok(discard.granularity >= 1);
    });

    this.#test("completes each request once, and none inside submit", async (bench) => {
      const all = this.#load(bench).map((shape) => bench.runner.submit(shape));
      for (const watched of all) assert.equal(await watched.ended, 0);
      await pause(1);
      assertOnce(all);
    });

    this.#test("takes the next request from within a completion", async ({ opened, unit }) => {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      let left = CHAIN;
      using region = allocateRegion(unit);
      const request = new BlockRequest({
        completed({ status }) {
          if (status !== 0) reject(new Error(`a read ended with ${status}`));
          else if (--left === 0) resolve();
          else opened.store.submit(request);
        },
      });
      request.length = unit;
      request.segments = new SegmentList(1);
      request.segments.add(region, 0, unit);
      opened.store.submit(request);
      opened.reactor.soon();
      await promise;
    });

    this.#test("reads what a fresh disk holds, into segments of any length", async (bench) => {
      for (const segmentLengths of [[bench.used], [1, 7, 512], [4096], [3, 4093]]) {
        const length = Math.min(bench.blocks(9), bench.used);
        const offset = Math.min(bench.blocks(3), bench.used - length);
        const watched = bench.runner.submit({ operation: "read", offset, length, segmentLengths });
        assert.equal(await watched.ended, 0);
        assertSame(watched.bytes, this.#contents(offset, length), `reading by ${segmentLengths}`);
        assert.ok(watched.guardsHold, "bytes beside the segments were touched");
      }
    });

    this.#test("refuses what is not on the disk, and lives on", async ({ runner, store, unit }) => {
      const { size } = store.info;
      const ranges = [
        [size, unit],
        [size - unit, 2 * unit],
        [size + unit, unit],
        [-unit, unit],
        [0, -unit],
        [2 ** 53 - unit, unit],
        [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
        [2 ** 63, unit],
        [Number.NaN, unit],
        [0, Number.NaN],
        ...(unit > 1
          ? [
              [1, unit],
              [0, unit + 1],
            ]
          : []),
      ];
      for (const [offset, length] of ranges as [number, number][]) {
        const status = await runner.run({ operation: "read", offset, length });
        assert.equal(status, Errno.EINVAL, `reading ${length} bytes at ${offset}`);
      }
      assert.equal(await runner.run({ operation: "read", length: unit }), 0);
    });

    this.#test("tells of extents without gaps, and zero ones read as zeroes", async (bench) => {
      const { size } = bench.store.info;
      const { used, unit } = bench;
      for (const [offset, length] of [
        [0, size],
        [unit, used - 2 * unit],
        [0, unit],
      ] as const) {
        let at = offset;
        for await (const extent of bench.store.extents(offset, length)) {
          assert.equal(extent.offset, at, "a gap between extents");
          assert.ok(extent.length > 0, "an empty extent");
          at += extent.length;
          if (!extent.zero || extent.offset >= used) continue;
          const bytes = await bench.whole.read(
            extent.offset,
            Math.min(extent.length, used - extent.offset),
          );
          assertSame(bytes, new Uint8Array(bytes.length), "an extent that says it is zero");
        }
        assert.equal(at, offset + length, "the extents end early or late");
      }
      await assert.rejects(collect(bench.store.extents(0, size + unit)), {
        code: "EINVAL",
      });
      assert.deepEqual(await collect(bench.store.extents(0, 0)), []);
    });

    this.#test("ends cancelled requests and touches their memory no more", async (bench) => {
      const all = this.#load(bench).map((shape) => bench.runner.submit(shape));
      await bench.store.cancel(new Error("the test cancels"));
      for (const watched of all) {
        assert.equal(watched.completions, 1, "a request survived its cancellation");
        assert.ok([0, Errno.ECANCELED].includes(watched.request.status));
        watched.memory.bytes.fill(0x5a);
      }
      await pause(LATE_MILLISECONDS);
      for (const { memory } of all) assert.ok(memory.bytes.every((byte) => byte === 0x5a));
      assertOnce(all);
      await bench.store.cancel(new Error("nothing is left to cancel"));
      const { length } = await bench.runner.read(0, bench.unit);
      assert.equal(length, bench.unit);
    });

    this.#test("ends requests in flight when it is closed, twice if need be", async (bench) => {
      const all = this.#load(bench).map((shape) => bench.runner.submit(shape));
      await bench.store[Symbol.asyncDispose]();
      assertOnce(all);
      await bench.store[Symbol.asyncDispose]();
    });

    this.#test("resizes and says so, or refuses to", async ({ store, whole, unit }) => {
      const { size } = store.info;
      const told: number[] = [];
      const subscription = store.subscribe({ resized: (info) => told.push(info.size) });
      const grown = size + Math.max(unit, 65536);
      try {
        await store.resize(grown);
      } catch (error) {
        assert.match((error as { code: string }).code, /^(EOPNOTSUPP|EROFS|EACCES|EPERM|EINVAL)$/);
        assert.equal(store.info.size, size);
        assert.deepEqual(told, []);
        return;
      }
      assert.equal(store.info.size, grown);
      assert.deepEqual(told, [grown]);
      if (this.#options.contents === undefined) {
        assertSame(await whole.read(size, unit), new Uint8Array(unit), "what was added");
      }
      subscription[Symbol.dispose]();
      await store.resize(size);
      assert.deepEqual(told, [grown], "told after the subscription ended");
      assert.equal(
        await whole.run({ operation: "read", offset: size, length: unit }),
        Errno.EINVAL,
      );
    });
  }

  readOnlyDisk(): void {
    this.#test("refuses every change, and does not change", async ({ runner, store, unit }) => {
      const before = await runner.read(0, unit);
      const bytes = new Uint8Array(unit).fill(0xee);
      const changes: RequestShape[] = [{ operation: "write", bytes }];
      if (store.info.discard !== undefined) changes.push({ operation: "discard", length: unit });
      if (store.info.native.has("writeZeroes")) {
        changes.push({ operation: "writeZeroes", length: unit });
      }
      for (const change of changes) assert.equal(await runner.run(change), Errno.EROFS);
      assertSame(await runner.read(0, unit), before, "a read-only disk");
    });
  }

  writableDisk(): void {
    this.#test("refuses changes past its end", async ({ runner, whole, store, unit }) => {
      const { size } = store.info;
      const bytes = new Uint8Array(unit * 2);
      const past = [Errno.ENOSPC, Errno.EINVAL];
      for (const offset of [size - unit, size, size + unit]) {
        assert.ok(
          past.includes((await runner.run({ operation: "write", offset, bytes })) as never),
        );
        for (const operation of ["writeZeroes", "discard"] as const) {
          const status = await whole.run({ operation, offset, length: unit * 2 });
          assert.ok(
            [...past, Errno.EOPNOTSUPP].includes(status as never),
            `${operation}: ${status}`,
          );
        }
      }
      assert.equal(store.info.size, size);
    });

    this.#test("flushes and forces unit access, several at once", async ({ whole, unit }) => {
      const bytes = new Uint8Array(unit);
      const flags = RequestFlag.forceUnitAccess;
      const all = [0, 1, 2, 3].flatMap((i): RequestShape[] => [
        { operation: "write", offset: i * unit, bytes, flags },
        { operation: "writeZeroes", offset: (i + 4) * unit, length: unit, flags },
        { operation: "flush" },
        { operation: "cache", length: unit },
      ]);
      const statuses = await Promise.all(all.map((shape) => whole.run(shape)));
      assert.deepEqual(new Set(statuses), new Set([0]));
    });

    this.#test("cancels changes too, each ending once", async (bench) => {
      const bytes = new Uint8Array(bench.blocks(4));
      const all = Array.from({ length: DEPTH }, (_, i) => {
        const offset = (i * bytes.length) % (bench.used - bytes.length);
        return bench.runner.submit({
          operation: "write",
          offset: offset - (offset % bench.unit),
          bytes,
        });
      });
      await bench.store.cancel(new Error("the test cancels"));
      assertOnce(all);
      assert.equal(await bench.runner.run({ operation: "write", bytes }), 0);
    });
  }

  rememberingDisk(): void {
    this.#test("reads back what was written in pieces of any length, at depth", async (bench) => {
      const random = new SeededRandom(this.#seed);
      const piece = Math.max(bench.unit, Math.floor(bench.used / DEPTH / bench.unit) * bench.unit);
      const written = new Map<number, Uint8Array>();
      for (let offset = 0; offset + piece <= bench.used; offset += piece) {
        written.set(
          offset,
          Uint8Array.from({ length: piece }, () => random.below(256)),
        );
      }
      const segmentLengths = [1, 513, 4095, 4097];
      const ends = [...written].map(([offset, bytes]) =>
        bench.whole.run({ operation: "write", offset, bytes, segmentLengths }),
      );
      assert.deepEqual(new Set(await Promise.all(ends)), new Set([0]));
      for (const [offset, bytes] of written) {
        assertSame(await bench.whole.read(offset, piece), bytes, `seed ${this.#seed}, ${offset}`);
      }
    });

    this.#test("zeroes exactly what it is told to", async ({ whole, used, unit }) => {
      for (const flags of [0, RequestFlag.mayUnmap, RequestFlag.forceUnitAccess]) {
        await whole.write(0, new Uint8Array(used).fill(0x77));
        const offset = unit;
        const length = used - 2 * unit - (used > 100_000 ? 3 * unit : 0);
        assert.equal(await whole.run({ operation: "writeZeroes", offset, length, flags }), 0);
        const expected = new Uint8Array(used).fill(0x77).fill(0, offset, offset + length);
        assertSame(await whole.read(0, used), expected, `zeroing with flags ${flags}`);
      }
    });

    this.#test("discards no more than it is told to", async ({ store, whole, used, unit }) => {
      await whole.write(0, new Uint8Array(used).fill(0x77));
      const length = used - 2 * unit;
      const status = await whole.run({ operation: "discard", offset: unit, length });
      if (store.info.discard === undefined) assert.equal(status, Errno.EOPNOTSUPP);
      else assert.equal(status, 0);
      const bytes = await whole.read(0, used);
      assert.ok(bytes.subarray(0, unit).every((byte) => byte === 0x77));
      assert.ok(bytes.subarray(used - unit).every((byte) => byte === 0x77));
      if (store.info.discard?.zeroes === true) {
        assert.ok(bytes.subarray(unit, unit + length).every((byte) => byte === 0));
      }
    });

    this.#test("never calls written data zero", async ({ store, whole, used }) => {
      await whole.write(0, new Uint8Array(used).fill(0x11));
      for await (const { zero, hole } of store.extents(0, used)) {
        assert.ok(!zero && !hole, "data is told to be zero or a hole");
      }
    });

    this.#test("agrees with an array of bytes under random requests", async (bench) => {
      await runModel({
        runner: bench.whole,
        seed: this.#seed,
        size: bench.used,
        contents: this.#contents(0, bench.used),
      });
    });

    test(`${this.#name} keeps what was flushed when it is opened again`, async () => {
      const bench = new Bench(await this.#options.open(), this.#options);
      const bytes = new Uint8Array(bench.unit).fill(0x33);
      await bench.whole.write(bench.unit, bytes);
      assert.equal(await bench.whole.run({ operation: "flush" }), 0);
      await bench[Symbol.asyncDispose]();
      if (bench.opened.reopen === undefined) return;
      await using again = new Bench(await bench.opened.reopen(), this.#options);
      assertSame(await again.whole.read(again.unit, again.unit), bytes, "after opening again");
    });
  }
}

function assertOnce(all: readonly WatchedRequest[]): void {
  for (const { completions, endedInsideSubmit } of all) {
    assert.equal(completions, 1, `a request ended ${completions} times`);
    assert.ok(!endedInsideSubmit, "a request ended inside submit");
  }
}

/** assert.deepEqual would print a megabyte. */
function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert.equal(actual.length, expected.length, what);
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  assert.ok(at < 0, `${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
