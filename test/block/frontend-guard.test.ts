/** What a frontend keeps to itself, and what a backend cannot do to it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { shows } from "../../src/testing/index.ts";
import { BLKIF_RSP_OKAY, sectorOf } from "../../src/wire/blkif.ts";
import { GrantMapBatch } from "../../src/xen/domain.ts";
import { TOLERATED_EVENTS } from "../../src/xen/event-guard.ts";
import { GUEST, ManualClock, Operation, World } from "./frontend-world.ts";

for (const how of ["the toolstack's key", "the option"] as const) {
  test(
    `a backend that is not trusted, by ${how}, sees the data of requests and nothing else`,
    shows(["3.2.trusted", "2.19"], async () => {
      await using at = await World.start({
        keys: { "feature-persistent": "1" },
        ...(how === "the option"
          ? { limits: { trusted: false } }
          : { frontendKeys: { trusted: "0" } }),
      });
      assert.equal(at.frontend.figures.trusted, false);
      await at.disk.write(0, new Uint8Array(3 * 4096).fill(0xaa));
      let dirty = 0;
      at.backend.onrequest = (request) => {
        for (let i = 0; i < request.segmentCount; i++) {
          at.backend.withPage(request.references[i]!, true, (page) => {
            const shown = request.operation === 0 ? 0 : (request.lastSectors[i]! + 1) * 512;
            if (page.subarray(shown).some((byte) => byte !== 0)) dirty++;
          });
        }
        at.backend.answer(request, at.backend.execute(request, at.bytes));
      };
      await at.disk.write(0, new Uint8Array(4096 + 512).fill(0xbb));
      assert.equal((await at.disk.read(0, 3 * 4096))[0], 0xbb);
      assert.equal(dirty, 0);
    }),
  );
}

test(
  "the pages of a write cannot be written by a backend that keeps no mappings",
  shows(["4.1.8"], async () => {
    await using at = await World.start();
    const refused: number[] = [];
    at.backend.onrequest = (request) => {
      const batch = new GrantMapBatch(1);
      batch.count = 1;
      batch.references[0] = request.references[0]!;
      at.dom0.grants.map(GUEST, batch);
      if (batch.statuses[0] === 0) at.dom0.grants.unmap(batch.handles[0]!);
      else refused.push(batch.statuses[0]!);
      at.backend.answer(request, BLKIF_RSP_OKAY);
    };
    await at.disk.write(0, new Uint8Array(4096));
    assert.equal(refused.length, 1);
    await at.disk.read(0, 4096);
    assert.equal(refused.length, 1);
  }),
);

test(
  "grants that nobody used for a while are ended, and no timer runs while there are none",
  shows(["4.1.6"], async () => {
    const clock = new ManualClock();
    await using at = await World.start({ keys: { "feature-persistent": "1" }, clock });
    const rings = at.guest.grants.counters.granted;
    assert.equal(clock.timers, 0);
    await at.disk.write(0, new Uint8Array(8 * 4096));
    assert.equal(at.guest.grants.counters.granted, rings + 8);
    assert.equal(clock.timers, 1);
    // Used since the last look.
    clock.advance(10_000);
    assert.equal(at.guest.grants.counters.granted, rings + 8);
    clock.advance(10_000);
    assert.equal(at.guest.grants.counters.granted, rings);
    assert.equal(clock.timers, 0);
    await at.disk.write(0, new Uint8Array(4096));
    assert.equal(at.guest.grants.counters.granted, rings + 1);
  }),
);

test(
  "the page of an indirect request stays granted where those of its data do not",
  shows(["4.2.5"], async () => {
    await using at = await World.start({ keys: { "feature-max-indirect-segments": "32" } });
    const granted = at.guest.grants.counters.granted;
    const pages = new Set<number>();
    at.backend.onrequest = (request) => {
      pages.add(request.indirectReferences[0]!);
      at.backend.answer(request, at.backend.execute(request, at.bytes));
    };
    for (let i = 0; i < 10; i++) await at.disk.read(0, 32 * 4096);
    assert.equal(pages.size, 1);
    assert.equal(at.guest.grants.counters.granted, granted + 1);
  }),
);

test("a backend that keeps what it should unmap gets pages never lent again, and at last no disk", async () => {
  await using at = await World.start({ limits: { maxPoolPages: 32 }, leaks: true });
  const kept: number[] = [];
  at.backend.onrequest = (request) => {
    const batch = new GrantMapBatch(1);
    batch.count = 1;
    batch.references[0] = request.references[0]!;
    at.dom0.grants.map(GUEST, batch);
    assert.equal(batch.statuses[0], 0);
    kept.push(batch.starts[0]!);
    at.backend.answer(request, BLKIF_RSP_OKAY);
  };
  for (let i = 0; i < 32; i++) await at.disk.read(0, 4096);
  assert.equal(new Set(kept).size, 32);
  await assert.rejects(at.disk.read(0, 4096), { code: "EIO" });
  await at.backend.frontendIs(5, 6);
  assert.match((await at.backend.frontendKey("error")) ?? "", /32 of our pages mapped/);
  for (const start of kept) assert.ok(start > 0);
});

test(
  "a flood of events that bring nothing is heard less and less, and responses still are",
  shows(["2.16"], async () => {
    const clock = new ManualClock();
    await using at = await World.start({ clock });
    await at.disk.read(0, 4096);
    const before = at.guest.events.counters.delivered;
    for (let i = 0; i < 1000; i++) {
      at.backend.channel.notify();
      await turn();
    }
    const heard = at.guest.events.counters.delivered - before;
    assert.ok(heard <= 70, `${heard} events were heard`);
    // Each second one more, and a request is answered in the meantime.
    for (let i = 0; i < 12; i++) {
      clock.advance(1000);
      at.backend.channel.notify();
      await turn();
      await turn();
    }
    assert.ok(at.guest.events.counters.delivered - before <= heard + 24);
    const read = at.disk.read(0, 4096);
    await turn();
    clock.advance(1000);
    await read;
  }),
);

test("a backend whose events bring a response now and then is always heard at once", async () => {
  const clock = new ManualClock();
  await using at = await World.start({ clock });
  for (let round = 0; round < 20; round++) {
    await at.disk.read(0, 4096);
    const before = at.guest.events.counters.delivered;
    for (let i = 0; i < TOLERATED_EVENTS; i++) {
      at.backend.channel.notify();
      await turn();
    }
    assert.equal(at.guest.events.counters.delivered, before + TOLERATED_EVENTS);
  }
  assert.equal(clock.timers, 0);
});

test("a frontend that closes during a flood leaves no timer behind", async () => {
  const clock = new ManualClock();
  {
    await using at = await World.start({ clock });
    for (let i = 0; i < 2 * TOLERATED_EVENTS; i++) {
      at.backend.channel.notify();
      await turn();
    }
    assert.equal(clock.timers, 1);
  }
  assert.equal(clock.timers, 0);
});

for (const [dialect, sectors, number, first] of [
  ["spec", "2048", 24, 7],
  ["freebsd", "256", 3, 7],
  ["qemu-windows", "256", 3, 0],
  ["minios", "256", 24, 7],
] as const) {
  test(
    `with sectors of 4096 bytes, a backend that counts as ${dialect} is understood`,
    shows(["4.5.1"], async () => {
      await using at = await World.start({
        keys: { sectors, "sector-size": "4096", "feature-discard": "1" },
        limits: { dialect },
      });
      assert.equal(at.frontend.info.size, 2 ** 20);
      assert.equal(at.frontend.info.block.minimum, 4096);
      at.backend.onrequest = (request) => at.backend.answer(request, BLKIF_RSP_OKAY);
      await at.disk.read(3 * 4096, 4096);
      const [read] = at.backend.seen;
      assert.equal(sectorOf(read!.sectorLow, read!.sectorHigh), number);
      assert.equal(read!.lastSectors[0], first);
      await at.disk.discard(3 * 4096, 4096);
      assert.equal(at.backend.seen[1]!.discardSectorsLow, number / 3);
      const unaligned = at.request(Operation.read, 0);
      unaligned.request.offset = 512;
      assert.equal(await at.submit(unaligned).status, 22);
      const flag = await at.backend.frontendKey("feature-large-sector-size");
      assert.equal(flag, dialect === "qemu-windows" ? "1" : undefined);
    }),
  );
}

test(
  "a physical sector that is not larger than the logical one is none",
  shows(["4.5.2"], async () => {
    for (const [physical, preferred] of [
      ["4096", 4096],
      ["512", 512],
      ["256", 512],
      ["none", 512],
    ] as const) {
      await using at = await World.start({ keys: { "physical-sector-size": physical } });
      assert.equal(at.frontend.negotiated.physicalSectorSize, preferred);
    }
  }),
);
