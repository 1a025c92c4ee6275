/** The small parts that drivers and filters are made of. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { BlockStates } from "../../src/store/block-states.ts";
import { Disk } from "../../src/store/disk.ts";
import { StoreError } from "../../src/store/errors.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import { RangeLocks } from "../../src/store/range-locks.ts";
import { copyFromSegments, copyToSegments, zeroSegments } from "../../src/store/segments.ts";
import { SPARSE_PAGE_SIZE, SparseMemory } from "../../src/store/sparse-memory.ts";
import { StagingPool } from "../../src/store/staging-pool.ts";

test("block states agree with an array", () => {
  const change = fc.tuple(fc.nat(200), fc.nat(200), fc.nat(3));
  fc.assert(
    fc.property(fc.array(change, { maxLength: 20 }), (changes) => {
      const states = new BlockStates(201);
      const model = new Array<number>(201).fill(0);
      for (const [a, b, state] of changes) {
        const [first, end] = [Math.min(a, b), Math.max(a, b)];
        states.set(first, end, state);
        model.fill(state, first, end);
      }
      for (let block = 0; block < 201; block++) {
        assert.equal(states.get(block), model[block]);
        const next = model.findIndex((state, at) => at > block && state !== model[block]);
        assert.equal(states.runEnd(block, 201), next < 0 ? 201 : next);
      }
    }),
  );
  assert.throws(() => new BlockStates(2 ** 40), { code: "EFBIG" });
});

test("range locks keep overlapping ranges apart, and nothing else", () => {
  const locks = new RangeLocks();
  assert.ok(locks.tryLock(10, 20));
  assert.ok(locks.tryLock(20, 30));
  assert.ok(!locks.tryLock(15, 16));
  assert.ok(!locks.tryLock(0, 11));
  assert.ok(!locks.tryLock(29, 40));
  locks.unlock(10);
  assert.ok(locks.tryLock(0, 11));
  assert.ok(!locks.overlaps(11, 20));
  assert.ok(locks.overlaps(5, 6));
});

test("sparse memory has pages where something was written, and runs between them", () => {
  const memory = new SparseMemory();
  const far = 2 ** 45 + 5 * SPARSE_PAGE_SIZE;
  memory.makePage(far)[3] = 9;
  assert.equal(memory.page(far)?.[3], 9);
  assert.equal(memory.runEnd(0, 2 ** 50), far);
  assert.equal(memory.runEnd(far + 7, 2 ** 50), far + SPARSE_PAGE_SIZE);
  memory.zero(far + 3, far + 4);
  assert.equal(memory.page(far)?.[3], 0);
  memory.zero(0, 2 ** 46);
  assert.equal(memory.page(far), undefined);
});

test("bytes go in and out of segments as through one array", () => {
  const pieces = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(pieces, fc.nat(100), fc.nat(200), (lengths, from, count) => {
      const region = new MemoryRegion(new Uint8Array(1024), 0);
      const list = new SegmentList(lengths.length);
      let start = 3;
      for (const length of lengths) {
        list.add(region, start, length);
        start += length + 1;
      }
      const total = lengths.reduce((sum, length) => sum + length, 0);
      const at = Math.min(from, total);
      const length = Math.min(count, total - at);
      const bytes = Uint8Array.from({ length: total }, (_, i) => i + 1);
      copyToSegments(bytes, 0, list, 0, total);
      const back = new Uint8Array(length);
      copyFromSegments(list, at, back, 0, length);
      assert.deepEqual(back, bytes.slice(at, at + length));
      zeroSegments(list, at, length);
      const after = new Uint8Array(total);
      copyFromSegments(list, 0, after, 0, total);
      assert.deepEqual(after, bytes.slice().fill(0, at, at + length));
      region[Symbol.dispose]();
    }),
  );
});

test("the staging pool gives out what it has, once, and takes it back", () => {
  using pool = new StagingPool();
  const lists = Array.from({ length: 17 }, () => new SegmentList(16));
  for (const list of lists.slice(0, 16)) {
    assert.ok(pool.take(list, 262_144));
    assert.equal(list.count, 1, "neighbours are one segment");
  }
  assert.ok(!pool.take(lists[16]!, 1));
  for (const index of [3, 9, 0]) pool.give(lists[index]!);
  assert.ok(pool.take(lists[16]!, 100_000));
  const total = Array.from(lists[16]!.lengths.subarray(0, lists[16]!.count));
  assert.ok(total.reduce((sum, length) => sum + length, 0) >= 100_000);
});

test("a driver of promises says what failed, and cannot harm the disk by a wrong length", async () => {
  const reactor = new Reactor();
  let running = 0;
  let most = 0;
  const store = promiseStore({
    reactor,
    size: 65_536,
    depth: 3,
    async read(offset, length) {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
      if (offset === 0) throw new StoreError("ETIMEDOUT", "late");
      if (offset === 512) throw new TypeError("a bug");
      return new Uint8Array(offset === 1024 ? length + 1 : length);
    },
  });
  await using disk = new Disk(store, reactor);
  await assert.rejects(disk.read(0, 512), { code: "ETIMEDOUT" });
  await assert.rejects(disk.read(512, 512), { code: "EIO" });
  await assert.rejects(disk.read(1024, 512), { code: "EIO" });
  await Promise.all(Array.from({ length: 20 }, (_, i) => disk.read(2048 + i, 1)));
  assert.equal(most, 3);
  assert.equal(store.info.readOnly, true);
});

test("a function of promises is told by its signal that nobody waits any more", async () => {
  const reactor = new Reactor();
  const { promise, resolve } = Promise.withResolvers<unknown>();
  const store = promiseStore({
    reactor,
    size: 65_536,
    read(_offset, length, signal) {
      signal.addEventListener("abort", () => resolve(signal.reason));
      return new Promise(() => void length);
    },
  });
  const disk = new Disk(store, reactor);
  const read = assert.rejects(disk.read(0, 1), { code: "ECANCELED" });
  await new Promise((turn) => setImmediate(turn));
  const reason = new Error("enough");
  await store.cancel(reason);
  assert.equal(await promise, reason);
  await read;
  await disk[Symbol.asyncDispose]();
});
