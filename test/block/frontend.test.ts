/** A frontend before backends of every kind: plain, old, gone and hostile. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockFrontend, type FrontendLimits } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { Disk } from "../../src/store/disk.ts";
import { shows } from "../../src/testing/index.ts";
import { type Clock, systemClock } from "../../src/util/clock.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd } from "../../src/xen/toolstack.ts";
import { ScriptedBackend } from "./scripted-backend.ts";

interface World extends AsyncDisposable {
  readonly guest: Domain;
  readonly backend: ScriptedBackend;
  readonly frontend: BlockFrontend;
  readonly disk: Disk;
}

/** Time in which nobody waits: what is to happen after some seconds happens next. */
const hasty: Clock = {
  now: () => 0,
  after(_milliseconds, callback) {
    const immediate = setImmediate(callback);
    return { [Symbol.dispose]: () => clearImmediate(immediate) };
  },
};

async function world(
  keys: Record<string, string> = {},
  limits: Partial<FrontendLimits> = {},
  clock: Clock = systemClock,
): Promise<World> {
  const ends = new AsyncDisposableStack();
  const reactor = new Reactor();
  const machine = ends.use(await EmbeddedMachine.create({ reactor, memoryPages: 2048 }));
  const dom0 = await machine.createDomain(0);
  const guest = await machine.createDomain(1);
  await createDomainNodes(dom0.store, 0, "Domain-0");
  await createDomainNodes(dom0.store, 1, "guest");
  const description = { frontendDomid: 1, backendDomid: 0, vdev: 51712, readOnly: false };
  const paths = await createVbd(dom0.store, { ...description, params: "test" });
  const backend = ends.use(new ScriptedBackend(dom0, paths));
  backend.onrequest = (request) => backend.answer(request, BLKIF_RSP_OKAY);
  const connecting = BlockFrontend.connect(guest, paths.frontend, { clock, limits });
  try {
    const [frontend] = await Promise.all([connecting, backend.connect(1, keys)]);
    return {
      guest,
      backend,
      frontend,
      disk: new Disk(frontend, reactor),
      async [Symbol.asyncDispose]() {
        // The scripted backend lets go when the frontend does.
        const closing = frontend[Symbol.asyncDispose]();
        await backend.frontendIs(5, 6);
        backend[Symbol.dispose]();
        await backend.become(6);
        await closing;
        assert.equal(guest.grants.counters.quarantined, 0);
        await ends.disposeAsync();
      },
    };
  } catch (error) {
    await ends.disposeAsync();
    throw error;
  }
}

test(
  "with a backend that shows the least, requests have eleven segments and flushes complete at once",
  shows(["1.1", "2.9", "4.7.3", "3.2.ring-ref", "3.2.state"], async () => {
    await using at = await world();
    const { negotiated } = at.frontend;
    assert.equal(negotiated.ringPages, 1);
    assert.equal(negotiated.maxSegments, 11);
    assert.equal(negotiated.persistent, false);
    await at.disk.flush();
    assert.equal(at.backend.seen.length, 0);
    await at.disk.read(0, 23 * 4096);
    assert.deepEqual(
      at.backend.seen.map((request) => [request.operation, request.segmentCount]),
      [
        [BLKIF_OP_READ, 11],
        [BLKIF_OP_READ, 11],
        [BLKIF_OP_READ, 1],
      ],
    );
    await assert.rejects(at.disk.discard(0, 4096), { code: "EOPNOTSUPP" });
  }),
);

test(
  "with all features a long request is one indirect request, a flush a flush, a discard a discard",
  shows(["1.9", "4.2.2", "4.2.6", "4.4.3", "4.3.2"], async () => {
    await using at = await world({
      "feature-max-indirect-segments": "256",
      "feature-flush-cache": "1",
      "feature-barrier": "1",
      "feature-discard": "1",
      "feature-persistent": "1",
      "max-ring-page-order": "4",
    });
    assert.equal(at.frontend.negotiated.ringPages, 4);
    await at.disk.read(0, 32 * 4096);
    await at.disk.flush();
    await at.disk.discard(8192, 4096);
    const [read, flush, discard] = at.backend.seen;
    assert.equal(read?.operation, BLKIF_OP_INDIRECT);
    assert.equal(read?.indirectSegmentCount, 32);
    assert.equal(flush?.operation, BLKIF_OP_FLUSH_DISKCACHE);
    assert.equal(discard?.operation, BLKIF_OP_DISCARD);
    assert.deepEqual([discard?.sectorLow, discard?.discardSectorsLow], [16, 8]);
  }),
);

test("a backend with barriers alone is flushed by an empty barrier", async () => {
  await using at = await world({ "feature-barrier": "1" });
  await at.disk.flush();
  assert.equal(at.backend.seen[0]?.operation, BLKIF_OP_WRITE_BARRIER);
  assert.equal(at.backend.seen[0]?.segmentCount, 0);
});

test(
  "an error of the backend is the caller's, and the disk lives on",
  shows(["1.11"], async () => {
    await using at = await world({ "feature-discard": "1" });
    at.backend.onrequest = (request) => at.backend.answer(request, BLKIF_RSP_ERROR);
    await assert.rejects(at.disk.read(0, 4096), { code: "EIO" });
    at.backend.onrequest = (request) => at.backend.answer(request, -5);
    await assert.rejects(at.disk.write(0, new Uint8Array(512)), { code: "EIO" });
    at.backend.onrequest = (request) => at.backend.answer(request, BLKIF_RSP_EOPNOTSUPP);
    await assert.rejects(at.disk.discard(0, 512), { code: "EOPNOTSUPP" });
    at.backend.onrequest = (request) => at.backend.answer(request, BLKIF_RSP_OKAY);
    await at.disk.read(0, 4096);
  }),
);

for (const [what, sabotage] of [
  ["an id that is not in flight", (at: World) => at.backend.ring.respond(31, 0, 0, 0)],
  ["an id beyond every command", (at: World) => at.backend.ring.respond(0xffff_ffff, 0, 0, 0)],
  ["an id with a high half", (at: World) => at.backend.ring.respond(0, 7, 0, 0)],
  ["another operation", (at: World) => at.backend.ring.respond(0, 0, 1, 0)],
] as const) {
  test(
    `a response with ${what} ends the disk with an error, and nothing else`,
    shows(["2.14"], async () => {
      await using at = await world();
      at.backend.onrequest = () => sabotage(at);
      await assert.rejects(at.disk.read(0, 4096), { code: "EIO" });
      await assert.rejects(at.disk.read(0, 4096), { code: "EIO" });
      await at.backend.frontendIs(5, 6);
    }),
  );
}

test("an impossible response index ends the disk with an error, and nothing else", async () => {
  await using at = await world();
  at.backend.onrequest = () => {
    const { buffer, byteOffset } = at.backend.mapping.bytes;
    Atomics.store(new Int32Array(buffer, byteOffset, 4), 2, 77_000);
    at.backend.channel.notify();
  };
  await assert.rejects(at.disk.read(0, 4096), { code: "EIO" });
});

test("a backend without a size, or of no sector size, is refused with its keys in the message", async () => {
  await assert.rejects(world({ sectors: "0" }, {}, hasty), /sectors=0/);
  await assert.rejects(world({ "sector-size": "0" }, {}, hasty), /sector-size=0/);
  await assert.rejects(world({ "sector-size": "100" }, {}, hasty), /sector-size=100/);
});

test("when the backend goes away, everything waiting ends with an error", async () => {
  await using at = await world();
  at.backend.onrequest = undefined;
  const reads = Array.from({ length: 100 }, () => at.disk.read(0, 4096));
  const outcomes = Promise.allSettled(reads);
  await at.backend.become(5);
  for (const outcome of await outcomes) assert.equal(outcome.status, "rejected");
  await assert.rejects(at.disk.flush(), { code: "EIO" });
});

test(
  "a new size is announced when the backend writes Connected again",
  shows(["4.6.1", "3.4.resize"], async () => {
    await using at = await world();
    const { promise, resolve } = Promise.withResolvers<number>();
    using _subscription = at.frontend.subscribe({ resized: (info) => resolve(info.size) });
    await at.backend.write({ sectors: "4096" });
    await at.backend.become(4);
    assert.equal(await promise, 4096 * 512);
  }),
);

test("more requests than the ring has slots wait for their turn, and each ends once", async () => {
  await using at = await world();
  const reads = Array.from({ length: 500 }, (_, i) => at.disk.read(((i * 7) % 256) * 4096, 4096));
  await Promise.all(reads);
  assert.equal(at.backend.seen.length, 500);
  assert.equal(at.frontend.counters.responses, 500);
  assert.ok(at.frontend.counters.freezes["command shortage"] > 0);
});
