/** Suspend and resume, backends that are begun anew or move, and backends that want to close while the disk is used. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { shows } from "../../src/testing/index.ts";
import { BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_OKAY } from "../../src/wire/blkif.ts";
import { GUEST, Operation, type PlainRequest, World } from "./frontend-world.ts";

/** Writes of every page, each twice as often as the ring has slots, that the backend does not answer. */
async function unanswered(at: World, count = 80): Promise<PlainRequest[]> {
  at.backend.onrequest = undefined;
  const writes = Array.from({ length: count }, (_, i) =>
    at.submit(at.request(Operation.write, i, (i % 255) + 1, 3)),
  );
  await at.until(() => at.backend.seen.length === 32, "a full ring");
  return writes;
}

async function allOnce(at: World, writes: readonly PlainRequest[]): Promise<void> {
  for (const { status } of writes) assert.equal(await status, 0);
  for (const [i, write] of writes.entries()) {
    assert.equal(write.ends, 1);
    assert.equal(at.bytes[i * 4096], (i % 255) + 1);
  }
}

/** The backend closes and comes again, as a driver domain that is started anew. */
async function restart(at: World, keys: Record<string, string> = {}): Promise<void> {
  at.backend.detach();
  await at.backend.become(6);
  await at.backend.frontendIs(1);
  at.serve();
  await at.backend.connect(GUEST, keys);
  await at.backend.frontendIs(4);
}

test(
  "a suspension that is cancelled goes on with the ring there is, and nothing is sent meanwhile",
  shows(["4.6.4"], async () => {
    await using at = await World.start();
    await at.disk.write(0, new Uint8Array(4096).fill(1));
    await at.frontend.suspend();
    const write = at.submit(at.request(Operation.write, 0, 2));
    await sleep(5);
    assert.equal(at.backend.seen.length, 1);
    await at.frontend.resume({ cancelled: true });
    assert.equal(await write.status, 0);
    assert.equal(at.bytes[0], 2);
    assert.equal(at.backend.seen.length, 2);
  }),
);

test(
  "a suspended frontend sends nothing of what waits, though slots come free",
  shows(["4.6.2"], async () => {
    await using at = await World.start();
    at.backend.onrequest = undefined;
    const writes = Array.from({ length: 60 }, (_, i) =>
      at.submit(at.request(Operation.write, 59 - i, 2)),
    );
    await at.until(() => at.backend.seen.length === 32, "a full ring");
    await at.frontend.suspend();
    at.backend.answer(at.backend.seen[0]!, BLKIF_RSP_OKAY);
    at.backend.publish();
    await sleep(5);
    assert.equal(at.backend.seen.length, 32);
    at.serve();
    for (const request of at.backend.seen.slice(1)) at.backend.answer(request, BLKIF_RSP_OKAY);
    at.backend.publish();
    await at.frontend.resume({ cancelled: true });
    for (const write of writes) assert.equal(await write.status, 0);
  }),
);

test(
  "a suspension may wait for what is in flight, and is called off with EBUSY when that takes too long",
  shows(["4.6.2"], async () => {
    await using at = await World.start();
    at.backend.onrequest = undefined;
    const write = at.submit(at.request(Operation.write, 0, 2));
    await at.until(() => at.backend.seen.length === 1, "the write");
    await assert.rejects(at.frontend.suspend(5), { code: "EBUSY" });
    const suspending = at.frontend.suspend(5000);
    at.backend.answer(at.backend.seen[0]!, BLKIF_RSP_OKAY);
    at.backend.publish();
    await suspending;
    assert.equal(await write.status, 0);
    at.serve();
    await at.frontend.resume({ cancelled: true });
  }),
);

test(
  "after a move to another backend what was in flight is sent again there, once, and old answers count for nothing",
  shows(["4.6.3", "3.2.backend"], async () => {
    await using at = await World.start({ leaks: true });
    const writes = await unanswered(at);
    await at.frontend.suspend();
    const old = at.backend;
    const backend = await at.move(7);
    const resuming = at.frontend.resume();
    await backend.connect(GUEST, { "feature-persistent": "1" });
    await resuming;
    // The old one still maps the old ring, and answers at last.
    for (const request of old.seen) old.answer(request, -1);
    old.publish();
    await allOnce(at, writes);
    assert.equal(await at.frontend.negotiated.persistent, true);
    old[Symbol.dispose]();
    await at.disk.write(0, new Uint8Array(4096).fill(77));
    assert.equal(at.bytes[0], 77);
  }),
);

test(
  "resumed before the same backend, the frontend has it close first, and loses no request and no page",
  shows(["4.6.3"], async () => {
    await using at = await World.start();
    const writes = await unanswered(at);
    await at.frontend.suspend();
    const resuming = at.frontend.resume();
    await at.backend.frontendIs(6);
    await restart(at);
    await resuming;
    await allOnce(at, writes);
  }),
);

test("resumed, requests keep their order around one that is ordered", async () => {
  await using at = await World.start({ keys: { "feature-barrier": "1" } });
  at.backend.onrequest = undefined;
  const writes = [1, 2, 3, 4].map((value) =>
    at.submit(at.request(Operation.write, 0, value), value === 3),
  );
  await at.until(() => at.backend.seen.length === 4, "all of them");
  assert.equal(at.backend.seen[2]?.operation, BLKIF_OP_WRITE_BARRIER);
  const resuming = at.frontend.resume();
  await at.backend.frontendIs(6);
  // The new one has no barriers.
  await restart(at, { "feature-barrier": "0" });
  await resuming;
  for (const write of writes) assert.equal(await write.status, 0);
  assert.equal(at.bytes[0], 4);
  assert.equal(at.frontend.counters.freezes["single step"], 1);
});

test("a frontend that reconnects waits for its backend, and its disk shows the new size", async () => {
  await using at = await World.start({ frontend: { reconnect: true } });
  const writes = await unanswered(at);
  const sizes: number[] = [];
  using _subscription = at.frontend.subscribe({ resized: (info) => sizes.push(info.size) });
  await restart(at, { sectors: "4096" });
  await allOnce(at, writes);
  assert.deepEqual(sizes, [4096 * 512]);
  assert.equal(at.frontend.counters.freezes.disconnected, 2);
});

test("a frontend that reconnects comes through a backend that asks it to close, with fewer rings and other keys", async () => {
  await using at = await World.start({
    keys: { "max-ring-page-order": "2", "multi-queue-max-queues": "2" },
    frontend: { reconnect: true },
    limits: { maxQueues: 2 },
  });
  assert.equal(await at.backend.frontendKey("ring-ref"), undefined);
  const write = at.submit(at.request(Operation.write, 5, 5));
  assert.equal(await write.status, 0);
  await at.backend.become(5);
  await at.backend.frontendIs(6);
  await restart(at, { "max-ring-page-order": "0", "multi-queue-max-queues": "1" });
  assert.match((await at.backend.frontendKey("ring-ref")) ?? "", /^\d+$/);
  assert.equal(await at.backend.frontendKey("multi-queue-num-queues"), undefined);
  assert.equal(await at.backend.frontendKey("queue-0/ring-ref0"), undefined);
  assert.equal((await at.disk.read(5 * 4096, 1))[0], 5);
});

test("a backend that is taken offline is not waited for", async () => {
  await using at = await World.start({ frontend: { reconnect: true } });
  const writes = await unanswered(at);
  await at.backend.write({ online: "0" });
  await at.backend.become(5);
  for (const { status } of writes) assert.equal(await status, 5);
  await at.backend.frontendIs(6);
});

test(
  "a disk that somebody holds refuses to close, serves on, and closes when nobody holds it any more",
  shows(["4.6.5", "4.6.6", "3.4.unplug"], async () => {
    await using at = await World.start();
    const holders = [at.frontend.hold(), at.frontend.hold()];
    await at.backend.become(5);
    let error: string | undefined;
    while (error === undefined) error = await at.backend.frontendKey("error");
    assert.match(error, /in use; refusing to close/);
    await at.disk.write(0, new Uint8Array(512).fill(3));
    assert.equal(at.bytes[0], 3);
    holders[0]![Symbol.dispose]();
    holders[0]![Symbol.dispose]();
    // A close that should not come would have come by now.
    await sleep(20);
    await at.disk.read(0, 512);
    holders[1]![Symbol.dispose]();
    await at.backend.frontendIs(6);
    await assert.rejects(at.disk.read(0, 512), { code: "EIO" });
  }),
);

test(
  "forced, a disk is closed whoever holds it",
  shows(["4.6.5"], async () => {
    await using at = await World.start({ frontend: { forceClose: true } });
    using _holder = at.frontend.hold();
    await at.backend.become(5);
    await at.backend.frontendIs(6);
    await assert.rejects(at.disk.read(0, 512), { code: "EIO" });
  }),
);

test("a frontend that follows one which did not close has the backend let go of the old ring first", async () => {
  const states: string[] = [];
  await using at = await World.start({
    frontendKeys: { state: "4", "ring-ref": "999", "queue-1/ring-ref": "998" },
    before: async (backend) => {
      await backend.become(4);
      const become = backend.become.bind(backend);
      let first = true;
      backend.become = async (state) => {
        // Linux's backend: Closed after us, and InitWait when we begin anew.
        if (first) {
          first = false;
          await backend.frontendIs(6);
          states.push("closed");
          await become(6);
          await backend.frontendIs(1);
          states.push("initialising");
        }
        await become(state);
      };
    },
  });
  assert.deepEqual(states, ["closed", "initialising"]);
  assert.equal(await at.backend.frontendKey("queue-1/ring-ref"), undefined);
  await at.disk.write(0, new Uint8Array(512).fill(4));
  assert.equal(at.bytes[0], 4);
});

test("while a frontend waits for its backend, it can be closed, and what waited ends with an error", async () => {
  const at = await World.start({ frontend: { reconnect: true } });
  const writes = await unanswered(at);
  at.backend.detach();
  await at.backend.become(6);
  await at.backend.frontendIs(1);
  await at.frontend[Symbol.asyncDispose]();
  for (const { status, ends } of writes) {
    assert.equal(await status, 5);
    assert.ok(ends <= 1);
  }
  await at.backend.frontendIs(6);
  await at.machine[Symbol.asyncDispose]();
});
