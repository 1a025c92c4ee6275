/** Flushes, barriers and writes in order, before backends that have them, lack them, or only said that they have them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockStoreInfo } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_OKAY,
  type BlkifRequest,
} from "../../src/wire/blkif.ts";
import { Operation, World } from "./frontend-world.ts";

const FLUSH = { "feature-flush-cache": "1" };
const BARRIER = { "feature-barrier": "1" };

/** The backend refuses these operations, and does the others. */
function refuse(at: World, ...operations: number[]): void {
  at.backend.onrequest = (request, queue) => {
    const refused = operations.includes(request.operation);
    const status = refused ? BLKIF_RSP_EOPNOTSUPP : at.backend.execute(request, at.bytes);
    at.backend.answer(request, status, queue);
  };
}

/** The backend keeps what it is asked until it is told to answer. */
function hoard(at: World): { request: BlkifRequest; queue: number }[] {
  const hoarded: { request: BlkifRequest; queue: number }[] = [];
  at.backend.onrequest = (request, queue) => void hoarded.push({ request, queue });
  return hoarded;
}

function answerOne(at: World, hoarded: { request: BlkifRequest; queue: number }[]): number {
  const { request, queue } = hoarded.shift()!;
  at.backend.answer(request, at.backend.execute(request, at.bytes), queue);
  at.backend.publish(queue);
  return request.operation;
}

const operations = (at: World) => at.backend.seen.map(({ operation }) => operation);

test(
  "a flush is preferred where there are both, and a barrier tried when the flush turns out unknown",
  shows(["4.3.3", "4.3.6"], async () => {
    await using at = await World.start({ keys: { ...FLUSH, ...BARRIER } });
    refuse(at, BLKIF_OP_FLUSH_DISKCACHE);
    await at.disk.flush();
    await at.disk.flush();
    assert.deepEqual(operations(at), [
      BLKIF_OP_FLUSH_DISKCACHE,
      BLKIF_OP_WRITE_BARRIER,
      BLKIF_OP_WRITE_BARRIER,
    ]);
    assert.equal(at.frontend.negotiated.flush, false);
    assert.equal(at.frontend.figures.features, "write_barrier");
  }),
);

test(
  "where a backend turns out to know neither flush nor barrier, flushes fail, and it is not asked again",
  shows(["4.3.6"], async () => {
    await using at = await World.start({ keys: { ...FLUSH, ...BARRIER } });
    refuse(at, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER);
    const flushes = [at.disk.flush(), at.disk.flush(), at.disk.flush()];
    for (const flush of flushes) await assert.rejects(flush, { code: "EOPNOTSUPP" });
    assert.equal(at.frontend.figures.features, "");
    const asked = at.backend.seen.length;
    await assert.rejects(at.disk.flush(), { code: "EOPNOTSUPP" });
    assert.equal(at.backend.seen.length, asked);
  }),
);

test("a flush that failed is an error, not a missing feature", async () => {
  await using at = await World.start({ keys: FLUSH });
  at.backend.onrequest = (request) => at.backend.answer(request, -1);
  await assert.rejects(at.disk.flush(), { code: "EIO" });
  assert.equal(at.frontend.negotiated.flush, true);
});

test(
  "a discard that turns out unknown is withdrawn, and listeners are told",
  shows(["4.4.6"], async () => {
    await using at = await World.start({ keys: { "feature-discard": "1" } });
    const told: BlockStoreInfo[] = [];
    using _subscription = at.frontend.subscribe({ resized: (info) => told.push(info) });
    assert.notEqual(at.frontend.info.discard, undefined);
    refuse(at, BLKIF_OP_DISCARD);
    const discard = at.submit(at.request(Operation.discard, 0));
    assert.equal(await discard.status, Errno.EOPNOTSUPP);
    assert.equal(at.frontend.info.discard, undefined);
    assert.equal(told.length, 1);
    assert.equal(await at.submit(at.request(Operation.discard, 0)).status, Errno.EOPNOTSUPP);
    assert.equal(at.backend.seen.length, 1);
  }),
);

test(
  "a secure discard is not asked of a backend that cannot",
  shows(["1.8", "4.4.4"], async () => {
    await using at = await World.start({ keys: { "feature-discard": "1" } });
    const secure = at.request(Operation.discard, 0);
    secure.request.flags = 8;
    assert.equal(await at.submit(secure).status, Errno.EOPNOTSUPP);
    assert.equal(at.backend.seen.length, 0);
  }),
);

test(
  "an ordered write is a barrier with its data, and nothing waits for it here",
  shows(["1.3", "4.3.1"], async () => {
    await using at = await World.start({ keys: BARRIER });
    const ends = [
      at.submit(at.request(Operation.write, 0, 1)),
      at.submit(at.request(Operation.write, 0, 2), true),
      at.submit(at.request(Operation.write, 0, 3)),
    ];
    for (const { status } of ends) assert.equal(await status, 0);
    assert.deepEqual(operations(at), [BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_WRITE]);
    assert.equal(at.frontend.counters.freezes["wait idle"], 0);
  }),
);

for (const [what, keys, pages, maxQueues] of [
  ["without barriers", {}, 1, 1],
  ["of more pages than a barrier carries", BARRIER, 12, 1],
  ["over several rings", { ...BARRIER, "multi-queue-max-queues": "2" }, 1, 2],
] as const) {
  test(
    `an ordered write ${what} is on the rings alone`,
    shows(["4.3.7"], async () => {
      await using at = await World.start({ keys, limits: { maxQueues } });
      const hoarded = hoard(at);
      const before = [2, 0].map((page) => at.submit(at.request(Operation.write, page, 1)));
      const ordered = at.submit(at.request(Operation.write, 0, 2, pages), true);
      const after = [0, 2].map((page) => at.submit(at.request(Operation.read, page)));
      await at.until(() => hoarded.length === 2, "the first two");
      assert.equal(answerOne(at, hoarded), BLKIF_OP_WRITE);
      assert.equal(answerOne(at, hoarded), BLKIF_OP_WRITE);
      await at.until(() => hoarded.length > 0, "the ordered write");
      const pieces = Math.ceil(pages / 11);
      await at.until(() => hoarded.length === pieces, "all of the ordered write");
      while (hoarded.length > 0) assert.equal(answerOne(at, hoarded), BLKIF_OP_WRITE);
      await at.until(() => hoarded.length === 2, "the last two");
      assert.equal(answerOne(at, hoarded), BLKIF_OP_READ);
      assert.equal(answerOne(at, hoarded), BLKIF_OP_READ);
      for (const { status } of [...before, ordered, ...after]) assert.equal(await status, 0);
      assert.equal(after[0]!.bytes[0], 2);
      assert.equal(at.frontend.counters.freezes["wait idle"], 1);
      assert.equal(at.frontend.counters.freezes["single step"], 1);
    }),
  );
}

test("an ordered write whose barrier is refused is done again in order, and so are those after it", async () => {
  await using at = await World.start({ keys: BARRIER });
  refuse(at, BLKIF_OP_WRITE_BARRIER);
  const writes = Array.from({ length: 20 }, (_, i) =>
    at.submit(at.request(Operation.write, 0, i + 1), true),
  );
  for (const { status, ends } of writes) {
    assert.equal(await status, 0);
    assert.ok(ends <= 1);
  }
  assert.equal(at.bytes[0], 20);
  assert.equal(at.frontend.negotiated.barrier, false);
});

test(
  "requests that wait for a slot keep their order, and every reason to wait is counted once each time",
  shows(["4.7.2", "4.9.9"], async () => {
    await using at = await World.start();
    const hoarded = hoard(at);
    const writes = Array.from({ length: 200 }, (_, i) =>
      at.submit(at.request(Operation.write, 199 - i, i)),
    );
    await at.until(() => hoarded.length === 32, "a full ring");
    assert.equal(at.frontend.counters.freezes["command shortage"], 1);
    for (let answered = 0; answered < 200; ) {
      await at.until(() => hoarded.length > 0, "more");
      while (hoarded.length > 0) {
        const { request, queue } = hoarded.shift()!;
        assert.equal(request.sectorLow, (199 - answered++) * 8);
        at.backend.answer(request, BLKIF_RSP_OKAY, queue);
      }
      at.backend.publish();
    }
    for (const { status } of writes) assert.equal(await status, 0);
  }),
);
