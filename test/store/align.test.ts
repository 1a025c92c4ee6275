/** A store of large blocks behind align(): what is not in whole blocks is read, changed and written back. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import { align } from "../../src/store/align.ts";
import { Disk } from "../../src/store/disk.ts";
import { emulate } from "../../src/store/emulate.ts";
import { storeSuite } from "../../src/testing/index.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { CoarseStore, memoryStore } from "../block/coarse-store.ts";

const reactor = new Reactor();

for (const [block, fine] of [
  [4096, 512],
  [65536, 512],
  [4096, 1024],
] as const) {
  storeSuite(`blocks of ${block} bytes as blocks of ${fine}`, {
    async open() {
      const coarse = new CoarseStore(await memoryStore(reactor), block, reactor);
      return { reactor, store: align(coarse, fine, reactor) };
    },
  });
}

test("a store of small blocks stays itself", async () => {
  await using store = await memoryStore(reactor);
  assert.equal(align(store, 512, reactor), store);
});

test("changes of neighbouring sectors at once leave each other alone", async () => {
  const coarse = new CoarseStore(await memoryStore(reactor, "1M", "1ms"), 4096, reactor);
  await using disk = new Disk(emulate(align(coarse, 512, reactor), reactor), reactor);
  const expected = new Uint8Array(64 * 1024);
  const seed = Math.floor(Math.random() * 2 ** 32);
  const random = new SeededRandom(seed);
  for (let round = 0; round < 20; round++) {
    const writes: Promise<void>[] = [];
    // Each sector in one write of the round, several writes in each block.
    for (let sector = 0; sector < 128; ) {
      const sectors = Math.min(1 + random.below(12), 128 - sector);
      const data = new Uint8Array(sectors * 512).fill(random.below(256));
      expected.set(data, sector * 512);
      writes.push(disk.write(sector * 512, data));
      sector += sectors;
    }
    await Promise.all(writes);
    assert.deepEqual(await disk.read(0, expected.length), expected, `seed ${seed}`);
  }
});

test("a discard keeps what it shares a block with", async () => {
  const coarse = new CoarseStore(await memoryStore(reactor), 4096, reactor);
  await using disk = new Disk(align(coarse, 512, reactor), reactor);
  await disk.write(0, new Uint8Array(16384).fill(1));
  await disk.discard(512, 12288);
  const after = await disk.read(0, 16384);
  assert.ok(after.subarray(0, 4096).every((byte) => byte === 1));
  assert.ok(after.subarray(4096, 12288).every((byte) => byte === 0));
  assert.ok(after.subarray(12288).every((byte) => byte === 1));
  assert.equal(disk.info.discard?.zeroes, false);
});
