/** Rings: how many, of how many pages, by which keys; and requests that are spread over them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { shows } from "../../src/testing/index.ts";
import { Operation, World } from "./frontend-world.ts";

const key = (world: World, name: string) => world.backend.frontendKey(name);

test(
  "several rings are asked for by name, each with its own grants and port, and none at the top",
  shows(["2.10", "3.2.multi-queue-num-queues"], async () => {
    await using at = await World.start({
      keys: { "multi-queue-max-queues": "8", "max-ring-page-order": "1" },
      limits: { maxQueues: 3 },
    });
    assert.equal(await key(at, "multi-queue-num-queues"), "3");
    for (const queue of [0, 1, 2]) {
      for (const name of ["ring-ref0", "ring-ref1", "event-channel"]) {
        assert.match((await key(at, `queue-${queue}/${name}`)) ?? "", /^\d+$/);
      }
    }
    assert.equal(await key(at, "ring-ref0"), undefined);
    assert.equal(await key(at, "event-channel"), undefined);
    assert.equal(at.frontend.negotiated.queues, 3);
    assert.equal(at.frontend.rings.length, 3);
  }),
);

test("with several rings every ring is used, what is written is read, and a flush comes after", async () => {
  await using at = await World.start({
    keys: { "multi-queue-max-queues": "4", "feature-flush-cache": "1" },
    limits: { maxQueues: 4 },
  });
  const used = new Set<number>();
  const { backend } = at;
  backend.onrequest = (request, queue) => {
    used.add(queue);
    backend.answer(request, backend.execute(request, at.bytes), queue);
  };
  const data = Uint8Array.from({ length: 200_704 }, (_, i) => (i * 31) >>> 3);
  const writes = Array.from({ length: 49 }, (_, i) =>
    at.disk.write(i * 4096, data.subarray(i * 4096, (i + 1) * 4096)),
  );
  await Promise.all(writes);
  await at.disk.flush();
  assert.deepEqual(await at.disk.read(0, data.length), data);
  assert.deepEqual([...used].sort(), [0, 1, 2, 3]);
});

test("a backend that knows one ring alone is given the keys of one", async () => {
  await using at = await World.start({ limits: { maxQueues: 4 } });
  assert.equal(await key(at, "multi-queue-num-queues"), undefined);
  assert.match((await key(at, "ring-ref")) ?? "", /^\d+$/);
  assert.equal(at.frontend.negotiated.queues, 1);
});

test(
  "a backend of the old scheme is asked for ring pages by both names, rounded down to a power of two",
  shows(["2.7", "3.2.num-ring-pages"], async () => {
    await using at = await World.start({ keys: { "max-ring-pages": "7" } });
    assert.equal(await key(at, "num-ring-pages"), "4");
    assert.equal(await key(at, "ring-page-order"), "2");
    assert.equal(at.frontend.negotiated.ringPages, 4);
  }),
);

test("a backend of the new scheme is asked by the new name alone", async () => {
  await using at = await World.start({ keys: { "max-ring-page-order": "1" } });
  assert.equal(await key(at, "num-ring-pages"), undefined);
  assert.equal(await key(at, "ring-page-order"), "1");
});

test("where memory is short there are fewer pages of rings and of data, and the disk works", async () => {
  await using at = await World.start({
    keys: { "max-ring-page-order": "4", "multi-queue-max-queues": "4" },
    limits: { maxRingPageOrder: 4, maxQueues: 4, maxPoolPages: 4096 },
    memoryPages: 140,
  });
  assert.ok(at.frontend.negotiated.queues < 4 || at.frontend.negotiated.ringPages < 16);
  const data = new Uint8Array(300_000).fill(7);
  await at.disk.write(0, data);
  assert.deepEqual(await at.disk.read(0, data.length), data);
});

test(
  "where grant entries are short requests wait for them, and none is lost",
  shows(["4.7.1"], async () => {
    await using at = await World.start({ grantEntries: 24 });
    const reads = Array.from({ length: 64 }, (_, i) =>
      at.submit(at.request(Operation.read, i, 0, 3)),
    );
    for (const { status } of reads) assert.equal(await status, 0);
    assert.ok(at.frontend.counters.freezes["grant shortage"] > 0);
  }),
);

test(
  "a backend that is Connected already is taken as it is",
  shows(["3.4.initwait", "3.4.connected"], async () => {
    await using at = await World.start({
      keys: { "feature-flush-cache": "1" },
      before: async (backend) => {
        await backend.write({ sectors: "2048", "sector-size": "512", info: "0" });
        await backend.become(4);
        // From here on it behaves as one that had been there before the frontend came.
        backend.become = async (state) => {
          if (state !== 2)
            await backend.domain.store.write(`${backend.paths.backend}/state`, `${state}`);
        };
      },
    });
    await at.disk.write(0, new Uint8Array(4096).fill(9));
    assert.equal(at.bytes[0], 9);
  }),
);
