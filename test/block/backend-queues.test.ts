/** A vbd of several rings: how many, what order holds between them, and that one may break alone. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FaultyStore, shows } from "../../src/testing/index.ts";
import { until } from "../../src/testing/vbd-pair.ts";
import {
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import { type BackendWorld, backendWorld } from "./backend-world.ts";
import { LackingStore, memoryStore } from "./coarse-store.ts";

/** A vbd whose disk holds all requests back until it is told, and says in which order it was asked. */
async function heldWorld(): Promise<BackendWorld & { asked: string[]; holder: FaultyStore }> {
  let store: LackingStore | undefined;
  let holder: FaultyStore | undefined;
  const world = await backendWorld({
    store: async (reactor) => {
      holder = new FaultyStore(await memoryStore(reactor), reactor);
      holder.hold();
      store = new LackingStore(holder, [], reactor);
      return store;
    },
  });
  return Object.assign(world, { asked: store!.asked, holder: holder! });
}

/** The backend has got that far. */
async function when(holds: () => boolean, what: string): Promise<void> {
  await until(
    () => holds() || undefined,
    () => `it never came to ${what}`,
    30_000,
  );
}

for (const queues of [2, 3, 4]) {
  for (const ringOrder of [0, 2]) {
    test(
      `${queues} rings of ${1 << ringOrder} pages serve one disk, and count each for itself`,
      shows(["2.10"], async () => {
        await using at = await backendWorld();
        const { frontend } = at;
        await frontend.connect(0, { queues, ringOrder, persistent: true });
        assert.equal(await frontend.backendKey("multi-queue-max-queues"), "4");
        for (let queue = 0; queue < queues; queue++) {
          frontend.page(queue).fill(queue + 1);
          const write = frontend.transfer(BLKIF_OP_WRITE, queue * 8, 1, queue);
          assert.equal(await frontend.status(write, queue), BLKIF_RSP_OKAY);
        }
        for (let queue = 0; queue < queues; queue++) {
          const read = frontend.transfer(BLKIF_OP_READ, queue * 8, 1, 10);
          assert.equal(await frontend.status(read, (queue + 1) % queues), BLKIF_RSP_OKAY);
          assert.equal(frontend.page(10)[4095], queue + 1);
        }
        const counters = at.backend.counters!;
        assert.deepEqual(
          counters.rings.map(({ reads, writes, requests }) => [reads, writes, requests]),
          Array(queues).fill([1, 1, 2]),
        );
        assert.deepEqual([counters.requests, counters.writtenSectors], [2 * queues, 8 * queues]);
        assert.equal(counters.persistentPages, 2 * queues, "each ring keeps its own pages");
        assert.equal(at.backend.negotiated?.queues, queues);
        await frontend.close();
        assert.equal(at.dom0.grants.counters.mapped, 0);
      }),
    );
  }
}

for (const [what, count] of [
  ["no ring at all", "0"],
  ["more rings than were offered", "5"],
  ["a number of rings that is none", "some"],
] as const) {
  test(
    `a frontend that asks for ${what} is refused, and nothing stays mapped`,
    shows(["3.2.multi-queue-num-queues"], async () => {
      await using at = await backendWorld();
      const { frontend } = at;
      await frontend.backendIs(2);
      await frontend.offer(0, { keys: { "multi-queue-num-queues": count } });
      await frontend.backendIs(5);
      assert.match((await frontend.backendKey("error")) ?? "", /EINVAL .*multi-queue-num-queues/);
      assert.equal(at.dom0.grants.counters.mapped, 0);
    }),
  );
}

test("a second ring that cannot be mapped leaves nothing of the first", async () => {
  await using at = await backendWorld();
  await at.frontend.backendIs(2);
  await at.frontend.offer(0, { queues: 2, keys: { "queue-1/ring-ref": "30000" } });
  await at.frontend.backendIs(5);
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

test("max_queues of 0 is one ring for each CPU", async () => {
  await using at = await backendWorld({ limits: { maxQueues: 0 }, cpus: 7 });
  assert.equal(await at.frontend.backendKey("multi-queue-max-queues"), "7");
});

test(
  "a barrier waits for every ring, and every ring waits for it",
  shows(["1.3", "4.3.5"], async () => {
    await using at = await heldWorld();
    const { frontend } = at;
    await frontend.connect(0, { queues: 2 });
    const counters = () => at.backend.counters!;
    frontend.sendTo(0, frontend.transfer(BLKIF_OP_WRITE, 0, 1));
    await when(() => at.asked.length === 1, "the write");
    frontend.sendTo(1, frontend.transfer(BLKIF_OP_READ, 8, 1, 1));
    await when(() => at.asked.length === 2, "the read");
    frontend.sendTo(1, frontend.transfer(BLKIF_OP_WRITE_BARRIER, 16, 1, 2));
    await when(() => counters().requests === 3, "the barrier");
    const { barrier } = counters().stalls;
    frontend.sendTo(0, frontend.transfer(BLKIF_OP_WRITE, 24, 1, 3));
    await when(() => counters().stalls.barrier > barrier, "what waits for the barrier");
    assert.deepEqual(at.asked, ["write 0", "read 4096"]);
    at.holder.release();
    for (const queue of [0, 0, 1, 1]) {
      assert.equal((await frontend.receive(queue)).status, BLKIF_RSP_OKAY);
    }
    assert.deepEqual(at.asked.slice(0, 4), ["write 0", "read 4096", "flush", "write 8192"]);
    assert.deepEqual(at.asked.at(-1), "write 12288", "after the barrier and all of it");
  }),
);

test("a flush covers writes taken before it on any ring, and holds nothing back", async () => {
  await using at = await heldWorld();
  const { frontend } = at;
  await frontend.connect(0, { queues: 2 });
  frontend.sendTo(0, frontend.transfer(BLKIF_OP_WRITE, 0, 1));
  await when(() => at.asked.length === 1, "the first write");
  frontend.sendTo(1, frontend.request(BLKIF_OP_FLUSH_DISKCACHE));
  await when(() => at.backend.counters!.requests === 2, "the flush");
  frontend.sendTo(0, frontend.transfer(BLKIF_OP_WRITE, 24, 1, 3));
  await when(() => at.asked.length === 2, "the second write");
  at.holder.release();
  for (const queue of [0, 0, 1]) {
    assert.equal((await frontend.receive(queue)).status, BLKIF_RSP_OKAY);
  }
  assert.deepEqual(at.asked, ["write 0", "write 12288", "flush"]);
});

test("a ring with an impossible index halts alone; the last one ends the vbd", async () => {
  await using at = await backendWorld();
  const { frontend } = at;
  await frontend.connect(0, { queues: 2 });
  const breakRing = (queue: number) => frontend.publishIndex(100_000, queue);
  breakRing(1);
  for (let i = 0; i < 5; i++) {
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }
  assert.equal(await frontend.state("backend"), 4);
  assert.match((await frontend.backendKey("error")) ?? "", /ring 1 halted/);
  breakRing(0);
  await frontend.backendIs(5);
  await frontend.become(6);
  await frontend.backendIs(6);
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

for (const [pages, used] of [
  [3, 2],
  [7, 4],
] as const) {
  test(
    `num-ring-pages of ${pages} is a ring of ${used} pages`,
    shows(["2.7", "2.8", "3.2.num-ring-pages"], async () => {
      await using at = await backendWorld();
      const { frontend } = at;
      await frontend.backendIs(2);
      const order = Math.log2(used);
      const keys = { "num-ring-pages": String(pages) };
      await frontend.connect(0, { ringOrder: order, ringKeys: "num-ring-pages", keys });
      assert.equal(at.backend.negotiated?.ringPages, used);
      assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
    }),
  );
}

test("a ring that was used before goes on where it stood", async () => {
  await using at = await backendWorld();
  const { frontend } = at;
  await frontend.connect(0);
  for (let i = 0; i < 5; i++) {
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }
  await frontend.become(5);
  await frontend.backendIs(5);
  await frontend.become(3);
  await frontend.backendIs(4);
  for (let i = 0; i < 40; i++) {
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }
  assert.equal(at.backend.counters?.requests, 40);
});
