/** What one frontend may take: pages, time, attention; and the parameters that say so. */
import assert from "node:assert/strict";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { test } from "node:test";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import {
  type BrokenRequestMessage,
  backendParameters,
  defaultBackendLimits,
  linuxStatistics,
  parseBackendParameters,
} from "../../src/block/index.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import { TOLERATED_EVENTS } from "../../src/xen/event-guard.ts";
import { backendWorld, TestClock } from "./backend-world.ts";
import { memoryStore } from "./coarse-store.ts";
import { ScriptedFrontend } from "./scripted-frontend.ts";

test(
  "after a broken request its ring rests for a millisecond, and no other ring does",
  shows(["4.7.6"], async () => {
    const clock = new TestClock();
    await using at = await backendWorld({ clock });
    const { frontend } = at;
    await frontend.connect(0, { queues: 2 });
    const broken = () => frontend.transfer(BLKIF_OP_READ, 5000, 1);
    frontend.send(broken(), broken(), frontend.transfer(BLKIF_OP_READ, 0, 1));
    assert.equal((await frontend.receive()).status, BLKIF_RSP_ERROR);
    await sleep(10);
    assert.equal(frontend.ring.pending(), 0, "the ring rests");
    const other = frontend.transfer(BLKIF_OP_READ, 0, 1);
    assert.equal(await frontend.status(other, 1), BLKIF_RSP_OKAY);
    clock.advance(1);
    assert.equal((await frontend.receive()).status, BLKIF_RSP_ERROR);
    clock.advance(0.5);
    await sleep(10);
    assert.equal(frontend.ring.pending(), 0, "and again");
    clock.advance(0.5);
    assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
    assert.equal(clock.pending, 0);
    assert.ok(at.backend.counters!.rings[0]!.stalls.brokenRequest > 0);
    assert.equal(at.backend.counters!.rings[1]!.stalls.brokenRequest, 0);
  }),
);

test(
  "a flood of events without a request costs a backend less and less, and requests are still heard",
  shows(["2.16"], async () => {
    const clock = new TestClock();
    await using at = await backendWorld({ clock });
    const { frontend, dom0 } = at;
    await frontend.connect(0);
    const read = () => frontend.transfer(BLKIF_OP_READ, 0, 1);
    const heardOf = async (count: number) => {
      const before = dom0.events.counters.delivered;
      for (let i = 0; i < count; i++) {
        frontend.channel.notify();
        await turn();
      }
      return dom0.events.counters.delivered - before;
    };
    // What came before it does not count.
    assert.equal(await frontend.status(read()), BLKIF_RSP_OKAY);
    for (let i = 0; i < 20; i++) {
      assert.equal(await heardOf(TOLERATED_EVENTS), TOLERATED_EVENTS);
      assert.equal(await frontend.status(read()), BLKIF_RSP_OKAY, "without any time that passes");
    }
    assert.equal(clock.pending, 0);
    assert.equal(await heardOf(1000), TOLERATED_EVENTS + 1);
    // Each wait is twice as long as the last.
    clock.advance(1);
    assert.equal(await heardOf(1000), 1);
    clock.advance(1);
    assert.equal(await heardOf(1000), 0);
    clock.advance(1);
    assert.equal(await heardOf(1000), 1);
    const answer = frontend.status(read());
    await turn();
    assert.equal(frontend.ring.pending(), 0, "it waits for its turn");
    clock.advance(4);
    assert.equal(await answer, BLKIF_RSP_OKAY);
    assert.equal(await heardOf(TOLERATED_EVENTS), TOLERATED_EVENTS, "and is forgiven");
  }),
);

/** Until the backend has masked its port, and a timer is to open it. */
async function flood(frontend: ScriptedFrontend): Promise<void> {
  for (let i = 0; i < 2 * TOLERATED_EVENTS; i++) {
    frontend.channel.notify();
    await turn();
  }
}

test("a backend that closes during a flood leaves no timer behind, and hears the next frontend", async () => {
  const clock = new TestClock();
  await using at = await backendWorld({ clock });
  for (let round = 0; round < 2; round++) {
    await using frontend = new ScriptedFrontend(at.guest, at.paths);
    await frontend.connect(0);
    await flood(frontend);
    assert.equal(clock.pending, 1);
    await frontend.close();
    assert.equal(clock.pending, 0);
    await frontend.become(1);
  }
});

test("a ring that was halted during a flood stays deaf", async () => {
  const clock = new TestClock();
  const held: (() => void)[] = [];
  const store = async (reactor: Reactor) => {
    const memory = await memoryStore(reactor, "1M");
    const submit = memory.submit.bind(memory);
    memory.submit = (request) => void held.push(() => submit(request));
    return memory;
  };
  await using at = await backendWorld({ clock, store });
  const { frontend, dom0 } = at;
  await frontend.connect(0, { queues: 2 });
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 1));
  await flood(frontend);
  assert.deepEqual([held.length, clock.pending], [1, 1]);
  const { pages } = frontend.rings[0]!;
  const { bytes } = pages.region;
  Atomics.store(new Int32Array(bytes.buffer, bytes.byteOffset + pages.start, 4), 0, 100_000);
  // Its answer has the ring looked at.
  held[0]!();
  dom0.reactor.settle();
  assert.equal(clock.pending, 0);
  const before = dom0.events.counters.delivered;
  clock.advance(1000);
  await flood(frontend);
  assert.equal(dom0.events.counters.delivered, before);
  assert.match((await frontend.backendKey("error")) ?? "", /ring 0 halted/);
});

test(
  "broken requests are told by their rule, ten times a second at most",
  shows(["4.9.10"], async () => {
    const clock = new TestClock();
    await using at = await backendWorld({ clock });
    const told: BrokenRequestMessage[] = [];
    const listen = (message: unknown) => {
      if ((message as BrokenRequestMessage).path === at.paths.backend) {
        told.push(message as BrokenRequestMessage);
      }
    };
    subscribe("vbdkit:backend", listen);
    try {
      const { frontend } = at;
      await frontend.connect(0);
      for (let i = 0; i < 150; i++) {
        assert.equal(
          await frontend.status(frontend.transfer(BLKIF_OP_READ, 5000, 1)),
          BLKIF_RSP_ERROR,
        );
        clock.advance(1);
      }
      assert.equal(told.length, 2);
      const [first, second] = told;
      assert.deepEqual([first?.rule, first?.ring, first?.untold], ["endOfDevice", 0, 0]);
      assert.equal(second?.untold, 99);
    } finally {
      unsubscribe("vbdkit:backend", listen);
    }
  }),
);

test(
  "requests whose pages would be more than max_buffer_pages wait, and all are answered",
  shows(["4.1.7"], async () => {
    const limits = { maxBufferPages: 16 };
    await using at = await backendWorld({ limits, delay: "5ms" });
    const { frontend } = at;
    await frontend.connect(0);
    const reads = Array.from({ length: 6 }, () => frontend.transfer(BLKIF_OP_READ, 0, 11));
    frontend.send(...reads);
    let most = 0;
    for (let left = reads.length; left > 0; left--) {
      await sleep(1);
      most = Math.max(most, at.backend.counters!.mappedPages);
      assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
    }
    assert.equal(most, 11, "one request's pages at a time");
    assert.ok(at.backend.counters!.stalls.bufferPages > 0);
  }),
);

test("a request of more pages than max_buffer_pages runs alone", async () => {
  await using at = await backendWorld({ limits: { maxBufferPages: 0 }, delay: "1ms" });
  const { frontend } = at;
  await frontend.connect(0);
  frontend.send(
    frontend.transfer(BLKIF_OP_WRITE, 0, 11),
    frontend.indirect(BLKIF_OP_READ, 0, 16, 11),
  );
  for (let i = 0; i < 2; i++) assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
});

test("a frontend that closes while a request of its waits for pages is closed all the same", async () => {
  await using at = await backendWorld({ limits: { maxBufferPages: 1 }, delay: "30ms" });
  const { frontend } = at;
  await frontend.connect(0);
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 1), frontend.transfer(BLKIF_OP_READ, 0, 1, 1));
  await sleep(5);
  await frontend.become(6);
  await frontend.backendIs(6);
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

test(
  "a kept page that nobody used for a minute goes back, and then no timer runs",
  shows(["4.1.6"], async () => {
    const clock = new TestClock();
    await using at = await backendWorld({ clock });
    const { frontend } = at;
    await frontend.connect(0, { persistent: true });
    assert.equal(clock.pending, 0, "an idle vbd arms none");
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
    assert.equal(clock.pending, 1);
    clock.advance(30_000);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 4)), BLKIF_RSP_OKAY);
    clock.advance(30_000);
    await sleep(5);
    assert.equal(at.backend.counters?.persistentPages, 4, "those used meanwhile stay");
    assert.equal(at.dom0.grants.counters.mapped, 4 + 1);
    clock.advance(60_000);
    await sleep(5);
    assert.equal(at.dom0.grants.counters.mapped, 1, "the ring alone");
    assert.equal(at.backend.counters?.purgedPages, 11);
    assert.equal(clock.pending, 0);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
  }),
);

test(
  "a frontend that uses more pages than are kept is served, and the cache makes room",
  shows(["4.1.4", "4.1.5"], async () => {
    const clock = new TestClock();
    const limits = { maxPersistentGrants: 100, persistentGrantUnusedSeconds: 0 };
    await using at = await backendWorld({ clock, limits });
    const { frontend } = at;
    await frontend.connect(0, { persistent: true, pages: 132 });
    const use = async (first: number, count: number) => {
      for (let page = first; page < first + count; page += 11) {
        const request = frontend.transfer(BLKIF_OP_READ, 0, 11, page);
        assert.equal(await frontend.status(request), BLKIF_RSP_OKAY);
      }
    };
    await use(0, 132);
    assert.equal(at.backend.counters?.persistentPages, 100);
    clock.advance(100);
    await sleep(5);
    assert.equal(at.backend.counters?.persistentPages, 95, "5 % made room");
    await use(99, 33);
    assert.equal(at.backend.counters?.persistentPages, 100);
    clock.advance(100);
    await sleep(5);
    assert.equal(at.backend.counters?.persistentPages, 95);
    assert.equal(clock.pending, 0, "nothing overflows now");
    await frontend.close();
    assert.equal(at.dom0.grants.counters.mapped, 0);
  }),
);

test(
  "statistics have Linux's names, and log_stats traces them while the ring is used",
  shows(["4.9.1"], async () => {
    const clock = new TestClock();
    await using at = await backendWorld({ clock, limits: { logStats: true } });
    const { frontend } = at;
    await frontend.connect(0);
    await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 2));
    await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1));
    await frontend.status(frontend.request(BLKIF_OP_FLUSH_DISKCACHE));
    await frontend.status(frontend.request(BLKIF_OP_DISCARD, { discardSectorsLow: 8 }));
    assert.deepEqual(linuxStatistics(at.backend.counters!), {
      oo_req: 0,
      rd_req: 1,
      wr_req: 1,
      f_req: 1,
      ds_req: 1,
      rd_sect: 16,
      wr_sect: 8,
    });
    const lines = () => at.events.filter(({ kind }) => kind === "statistics");
    clock.advance(30_000);
    assert.equal(lines().length, 1, "once, for it was used once");
    assert.match(lines()[0]!.message, /ring 0: oo 0 \| rd 1 \| wr 1 \| f 1 \| ds 1 \| pg 0\/1056/);
  }),
);

test("every limit has one name, a default in its range, and a sentence", () => {
  const fields = backendParameters.map(({ field }) => field).sort();
  assert.deepEqual(fields, Object.keys(defaultBackendLimits).sort());
  for (const parameter of backendParameters) {
    const value = defaultBackendLimits[parameter.field];
    if (parameter.kind === "number") {
      assert.ok(Number(value) >= parameter.minimum && Number(value) <= parameter.maximum);
    }
    assert.match(parameter.help, /^[A-Z].*\.$/);
    assert.match(parameter.name, /^[a-z_]+$/);
  }
});

test(
  "limits are read by the names of the module's parameters",
  shows(["4.9.3"], () => {
    assert.deepEqual(
      parseBackendParameters({
        max_queues: "2",
        feature_persistent: "N",
        max_buffer_pages: "64",
        sector_size: "4096",
        dialect: "freebsd",
        log_stats: "1",
      }),
      {
        maxQueues: 2,
        persistent: false,
        maxBufferPages: 64,
        sectorSize: 4096,
        dialect: "freebsd",
        logStats: true,
      },
    );
    assert.throws(() => parseBackendParameters({ max_queus: "1" }), /did you mean "max_queues"/);
    assert.throws(() => parseBackendParameters({ max_queues: "two" }), /a number from 0 to 64/);
    assert.throws(() => parseBackendParameters({ sector_size: "1024" }), /512 or 4096/);
    assert.throws(() => parseBackendParameters({ log_stats: "maybe" }), /0 or 1/);
  }),
);

test("a limit out of its range is brought into it, with a word", async () => {
  await using at = await backendWorld({ limits: { maxRingPageOrder: 9, maxQueues: -1 }, cpus: 3 });
  assert.deepEqual([at.backend.limits.maxRingPageOrder, at.backend.limits.maxQueues], [4, 3]);
  const words = at.events.map(({ message }) => message).join("\n");
  assert.match(words, /max_ring_page_order=9 is not a number from 0 to 4: taken as 4/);
  assert.match(words, /max_queues=-1/);
});
