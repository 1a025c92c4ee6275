/** The promise face of a disk. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import { openStore } from "../../src/store/registry.ts";
import { FaultyStore, ForgetfulStore } from "../../src/testing/index.ts";
import { SeededRandom } from "../../src/util/random.ts";

const SIZE = 8 * 2 ** 20;

async function memoryDisk(size = String(SIZE)): Promise<Disk> {
  const reactor = new Reactor();
  return new Disk(await openStore(`memory ${size}`, { reactor }), reactor);
}

function randomBytes(random: SeededRandom, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => random.below(256));
}

/** A store in blocks of 4 KiB that takes its turns, in requests of 8 KiB. */
function blockStore(reactor: Reactor, bytes: Uint8Array): BlockStore {
  const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
  return promiseStore({
    reactor,
    size: bytes.length,
    block: { minimum: 4096, maximum: 8192 },
    async read(offset, length) {
      await turn();
      return bytes.slice(offset, offset + length);
    },
    async write(offset, data) {
      await turn();
      bytes.set(data, offset);
    },
  });
}

test("a disk reads what it wrote, at any offset and length", async () => {
  await using disk = await memoryDisk();
  await disk.write(5, Buffer.from("hello"));
  assert.equal(Buffer.from(await disk.read(3, 9)).toString("latin1"), "\0\0hello\0\0");
  assert.equal(disk.size, SIZE);
  assert.equal((await disk.read(SIZE, 0)).length, 0);
});

test("a transfer larger than the pool is cut and put together again", async () => {
  await using disk = await memoryDisk("32M");
  const bytes = randomBytes(new SeededRandom(1), 20 * 2 ** 20 + 13);
  await disk.write(777, bytes);
  assert.deepEqual(Buffer.compare(await disk.read(777, bytes.length), bytes), 0);
});

test("writes of parts of blocks leave the rest alone, also when many meet in one block", async () => {
  const reactor = new Reactor();
  const bytes = new Uint8Array(256 * 1024).fill(0xdd);
  await using disk = new Disk(blockStore(reactor, bytes), reactor);
  const seed = Math.floor(Math.random() * 2 ** 31);
  const random = new SeededRandom(seed);
  const model = Uint8Array.from(bytes);
  for (let round = 0; round < 20; round++) {
    // Neighbours that do not overlap, all under way together.
    const writes: Promise<void>[] = [];
    for (let at = random.below(9000); at < 60_000; ) {
      const length = 1 + random.below(random.below(2) === 0 ? 100 : 9000);
      if (random.below(3) === 0) {
        model.fill(0, at, at + length);
        writes.push(disk.writeZeroes(at, length));
      } else {
        const data = randomBytes(random, length);
        model.set(data, at);
        writes.push(disk.write(at, data));
      }
      at += length;
    }
    await Promise.all(writes);
    const read = await disk.read(1, 70_000);
    assert.equal(
      Buffer.compare(read, model.subarray(1, 70_001)),
      0,
      `seed ${seed}, round ${round}`,
    );
  }
});

test("ten thousand calls at once wait their turn", async () => {
  await using disk = await memoryDisk();
  const writes = Array.from({ length: 10_000 }, (_, i) =>
    disk.write(i * 16, Buffer.alloc(16, i % 251)),
  );
  await Promise.all(writes);
  const reads = await Promise.all(writes.map((_, i) => disk.read(i * 16, 16)));
  assert.ok(reads.every((bytes, i) => bytes.every((byte) => byte === i % 251)));
});

test("a small read does not wait for the end of a large one", async () => {
  await using disk = await memoryDisk("64M");
  const order: string[] = [];
  const large = disk.read(0, 64 * 2 ** 20).then(() => order.push("large"));
  const small = disk.read(0, 512).then(() => order.push("small"));
  await Promise.all([large, small]);
  assert.deepEqual(order, ["small", "large"]);
});

test("an aborted call rejects at once, and its request ends unseen", async () => {
  const reactor = new Reactor();
  const faulty = new FaultyStore(await openStore("memory 1M", { reactor }), reactor);
  await using disk = new Disk(faulty, reactor);
  faulty.hold();
  const abort = new AbortController();
  const mine = new Uint8Array(512).fill(7);
  const read = disk.readInto(0, mine, { signal: abort.signal });
  abort.abort(new Error("enough"));
  await assert.rejects(read, { message: "enough" });
  assert.equal(faulty.held, 1);
  faulty.release();
  reactor.settle();
  assert.deepEqual(await disk.read(0, 4), new Uint8Array(4));
  assert.ok(
    mine.every((byte) => byte === 7),
    "memory of an aborted read was touched",
  );
  await assert.rejects(disk.read(0, 1, { signal: AbortSignal.abort(new Error("before")) }), {
    message: "before",
  });
});

test("errors have the code of the store, and say what failed", async () => {
  const reactor = new Reactor();
  const faulty = new FaultyStore(await openStore("memory 1M", { reactor }), reactor);
  await using disk = new Disk(faulty, reactor);
  faulty.fail("write", "ENOSPC");
  await assert.rejects(disk.write(4096, new Uint8Array(10)), {
    code: "ENOSPC",
    message: "cannot write 10 bytes at 4096: ENOSPC",
  });
  faulty.fail("flush", "EIO");
  await assert.rejects(disk.flush(), { code: "EIO" });
  await assert.rejects(disk.read(2 ** 20 - 1, 2), { code: "EINVAL" });
  await assert.rejects(disk.write(2 ** 20, new Uint8Array(1)), { code: "ENOSPC" });
  await assert.rejects(disk.read(-1, 1), { code: "EINVAL" });
  await assert.rejects(disk.read(0.5, 1), { code: "EINVAL" });
  await disk.flush();
});

test("a read-only disk rejects changes", async () => {
  const reactor = new Reactor();
  await using disk = new Disk(await openStore("pattern 1M", { reactor }), reactor);
  await assert.rejects(disk.write(0, new Uint8Array(1)), { code: "EROFS" });
  await assert.rejects(disk.writeZeroes(0, 1), { code: "EROFS" });
  await assert.rejects(disk.discard(0, 1), { code: "EROFS" });
  assert.equal((await disk.read(8, 8)).at(-1), 8);
});

test("what was flushed or forced survives a power cut, other writes may not", async () => {
  const reactor = new Reactor();
  const store = new ForgetfulStore(reactor, 2 ** 20);
  await using disk = new Disk(store, reactor);
  await disk.write(0, Buffer.alloc(512, 1));
  await disk.flush();
  await disk.write(512, Buffer.alloc(512, 2), { forceUnitAccess: true });
  await disk.write(1024, Buffer.alloc(512, 3));
  await disk.writeZeroes(0, 512);
  assert.equal(store.unflushed, 2);
  store.powerCut();
  const bytes = await disk.read(0, 1536);
  assert.deepEqual([bytes[0], bytes[512], bytes[1024]], [1, 2, 0]);
});

test("a flush does not cover a write that had not ended", async () => {
  const reactor = new Reactor();
  const store = new ForgetfulStore(reactor, 2 ** 20);
  await using disk = new Disk(store, reactor);
  await Promise.all([disk.write(0, Buffer.alloc(512, 1)), disk.flush()]);
  store.powerCut();
  assert.equal((await disk.read(0, 1))[0], 0);
});

test("streams carry a disk from one end to the other", async () => {
  await using from = await memoryDisk();
  await using to = await memoryDisk();
  const bytes = randomBytes(new SeededRandom(2), SIZE);
  await from.write(0, bytes);
  await from.readable().pipeTo(to.writable());
  assert.equal(Buffer.compare(await to.read(0, SIZE), bytes), 0);
  const parts: Uint8Array[] = [];
  for await (const part of from.readable({ offset: 100, length: 1000 })) parts.push(part);
  assert.equal(Buffer.compare(Buffer.concat(parts), bytes.subarray(100, 1100)), 0);
});

test("a stream to a disk that is full fails", async () => {
  await using from = await memoryDisk();
  await using to = await memoryDisk("1M");
  await assert.rejects(from.readable().pipeTo(to.writable()), { code: "ENOSPC" });
});

test("extents, discards, zeroes and sizes go through", async () => {
  await using disk = await memoryDisk();
  await disk.write(0, new Uint8Array(SIZE).fill(1));
  await disk.discard(0, 65536);
  await disk.writeZeroes(65536, 65536, { mayUnmap: true, mustBeFast: true });
  const found = [];
  for await (const extent of disk.extents()) found.push(extent);
  assert.deepEqual(found, [
    { offset: 0, length: 131072, hole: true, zero: true },
    { offset: 131072, length: SIZE - 131072, hole: false, zero: false },
  ]);
  await disk.resize(2 * SIZE);
  assert.equal(disk.size, 2 * SIZE);
});

test("a closed disk rejects what waits and what comes", async () => {
  const reactor = new Reactor();
  const faulty = new FaultyStore(await openStore("memory 8M", { reactor }), reactor);
  const disk = new Disk(faulty, reactor);
  faulty.hold();
  const reads = Array.from({ length: 40 }, () => disk.read(0, 262_144));
  const ends = Promise.allSettled(reads);
  await disk[Symbol.asyncDispose]();
  assert.ok((await ends).every(({ status }) => status === "rejected"));
  await assert.rejects(disk.read(0, 1), { code: "ESHUTDOWN" });
  await disk[Symbol.asyncDispose]();
});
