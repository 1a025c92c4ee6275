/** The doubles that others are tested with must themselves be as mean as they say. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import { BatchStore } from "../../src/store/batch-store.ts";
import type { BlockRequest } from "../../src/store/block-store.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import { openStore } from "../../src/store/registry.ts";
import { FaultyStore, ForgetfulStore, RequestRunner, runModel } from "../../src/testing/index.ts";

const SECTORS = 64;

test("a power cut keeps or loses each sector whole, the same for the same seed", async () => {
  const survivors = async (seed: number) => {
    const reactor = new Reactor();
    const store = new ForgetfulStore(reactor, SECTORS * 512);
    using runner = new RequestRunner(store, reactor);
    await runner.write(0, new Uint8Array(SECTORS * 512).fill(1));
    store.powerCut(seed);
    const bytes = await runner.read(0, SECTORS * 512);
    const kept: number[] = [];
    for (let sector = 0; sector < SECTORS; sector++) {
      const values = new Set(bytes.subarray(sector * 512, (sector + 1) * 512));
      assert.equal(values.size, 1, "a sector was torn");
      if (values.has(1)) kept.push(sector);
    }
    return kept;
  };
  const kept = await survivors(5);
  assert.ok(kept.length > 10 && kept.length < SECTORS - 10, `${kept.length} sectors survived`);
  assert.deepEqual(await survivors(5), kept);
});

test("requests in flight when the power is cut are not done", async () => {
  const reactor = new Reactor();
  const store = new ForgetfulStore(reactor, 65_536);
  using runner = new RequestRunner(store, reactor);
  const write = runner.run({ operation: "write", bytes: new Uint8Array(512).fill(1) });
  const flush = runner.run({ operation: "flush" });
  store.powerCut();
  assert.deepEqual(new Set(await Promise.all([write, flush])), new Set([125]));
  assert.equal((await runner.read(0, 1 * 512))[0], 0);
});

test("a faulty store fails as often as it was told to, and lets go in order", async () => {
  const reactor = new Reactor();
  const store = new FaultyStore(await openStore("memory 1M", { reactor }), reactor);
  using runner = new RequestRunner(store, reactor);
  store.fail("read", "ENOMEM", 2);
  const shape = { operation: "read", length: 1 } as const;
  assert.deepEqual(await Promise.all([1, 2, 3].map(() => runner.run(shape))), [12, 12, 0]);
  store.hold();
  const ended: number[] = [];
  const reads = [0, 1, 2].map((i) => runner.run(shape).then(() => ended.push(i)));
  store.release(2);
  await Promise.all(reads.slice(0, 2));
  assert.deepEqual(ended, [0, 1]);
  assert.equal(store.held, 1);
  store.release();
  await Promise.all(reads);
});

/** Completes a write before it has happened to half of its bytes. */
class LyingStore extends BatchStore {
  readonly #bytes = new Uint8Array(65_536);

  constructor(reactor: Reactor) {
    super(reactor, {
      size: 65_536,
      readOnly: false,
      block: { minimum: 1, preferred: 4096, maximum: 65_536 },
      discard: undefined,
      native: new Set(["flush", "writeZeroes", "forceUnitAccess"]),
      shareable: false,
      depth: 1,
    });
  }

  protected override execute({ operation, offset, length, segments }: BlockRequest): number {
    const list = segments;
    if (operation === 1 && list !== undefined) this.#bytes.fill(1, offset, offset + length / 2);
    return 0;
  }

  override async *extents(): AsyncIterable<never> {}
}

test("the model finds a store that lies, and says the seed", async () => {
  const reactor = new Reactor();
  using runner = new RequestRunner(new LyingStore(reactor), reactor);
  const contents = new Uint8Array(65_536);
  await assert.rejects(runModel({ runner, seed: 99, size: 65_536, contents }), /seed 99, /);
});

test("a request that ends inside submit is seen", () => {
  const reactor = new Reactor();
  const store = promiseStore({
    reactor,
    size: 65_536,
    read: (_, length) => new Uint8Array(length),
  });
  store.submit = (request) => request.owner.completed(request);
  using runner = new RequestRunner(store, reactor);
  assert.ok(runner.submit({ operation: "read", length: 1 }).endedInsideSubmit);
});
