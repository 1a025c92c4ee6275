/** QEMU's own xen-block backend, a domain by way of the shim, serves our frontend: neither shares code with us. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, describe, test } from "node:test";
import type { BlockFrontend } from "../../src/block/index.ts";
import { Disk } from "../../src/store/disk.ts";
import { shows, storeSuite } from "../../src/testing/index.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
} from "../../src/wire/blkif.ts";
import { ScriptedFrontend } from "../block/scripted-frontend.ts";
import { QEMU, QEMU_IMAGE_BYTES, QemuWorld } from "../support/qemu-world.ts";
import { until } from "../xen/embedded/exchange.ts";

test(
  "QEMU's backend does what our frontend asks, and lets go of everything",
  shows(["1.1", "1.2", "1.4", "1.7"], async () => {
    await using world = await QemuWorld.start();
    const image = world.image("works");
    const frontend = await world.connect(await world.plug(image));
    assert.equal(frontend.info.size, QEMU_IMAGE_BYTES);
    const disk = new Disk(frontend, world.guest.reactor);
    const data = Buffer.from(Array.from({ length: 2 ** 20 }, (_, i) => (i * 7919) >>> 5));
    await disk.write(4096, data);
    await disk.flush();
    assert.ok(
      readFileSync(image)
        .subarray(4096, 4096 + data.length)
        .equals(data),
    );
    assert.ok(Buffer.from(await disk.read(4096, data.length)).equals(data));
    await disk.discard(4096, 2 ** 20);
    assert.ok((await disk.read(0, 2 ** 20)).every((byte) => byte === 0));
    assert.ok(world.guest.events.counters.delivered > 0);
    await frontend[Symbol.asyncDispose]();
    const { granted, quarantined } = world.guest.grants.counters;
    assert.deepEqual([granted, quarantined], [0, 0]);
  }),
);

test("QEMU that is killed under a connected ring leaves the guest its pages", async () => {
  await using world = await QemuWorld.start();
  const frontend = await world.connect(await world.plug(world.image("killed")));
  const disk = new Disk(frontend, world.guest.reactor);
  await disk.write(0, Buffer.alloc(65536, 1));
  assert.ok(world.guest.grants.counters.granted > 0);
  await world.kill();
  await frontend.cancel();
  await frontend[Symbol.asyncDispose]();
  await until(() => world.guest.grants.counters.granted === 0);
  assert.equal(world.guest.grants.counters.quarantined, 0);
});

/** What QEMU answers to requests, good and bad: it is a peer to know, and proves that our scripts ask what they mean to. */
test("QEMU's backend answers our scripted frontend as a backend does", async () => {
  await using world = await QemuWorld.start();
  const paths = await world.plug(world.image("scripted"));
  await using frontend = new ScriptedFrontend(world.guest, paths);
  await frontend.connect(QEMU);
  const ungranted = frontend.transfer(BLKIF_OP_READ, 0, 1);
  ungranted.references[0] = 31000;
  const backwards = frontend.transfer(BLKIF_OP_READ, 0, 1);
  backwards.firstSectors[0] = 5;
  backwards.lastSectors[0] = 4;
  frontend.page(0).fill(0x5a);
  const statuses = [
    await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 8, 11)),
    await frontend.status(frontend.transfer(BLKIF_OP_READ, 8, 1, 12)),
    await frontend.status(frontend.request(BLKIF_OP_FLUSH_DISKCACHE)),
    await frontend.status(
      frontend.request(BLKIF_OP_DISCARD, { sectorLow: 8, discardSectorsLow: 8 }),
    ),
    await frontend.status(frontend.request(BLKIF_OP_WRITE_BARRIER)),
    await frontend.status(frontend.request(9)),
    await frontend.status(frontend.transfer(BLKIF_OP_READ, QEMU_IMAGE_BYTES / 512, 1)),
    await frontend.status(ungranted),
    await frontend.status(backwards),
  ];
  assert.deepEqual(statuses, [0, 0, 0, 0, -1, -1, -1, -1, -1]);
  assert.ok(frontend.page(12).every((byte) => byte === 0x5a));
  await frontend.close();
});

test(
  "a disk that QEMU resizes has its new size in our frontend",
  shows(["4.6.1", "3.4.resize"], async () => {
    await using world = await QemuWorld.start();
    const frontend = await world.connect(await world.plug(world.image("resized")));
    const [device] = (await world.qmp("query-block")) as { inserted: { "node-name": string } }[];
    const { promise, resolve } = Promise.withResolvers<number>();
    using _subscription = frontend.subscribe({ resized: ({ size }) => resolve(size) });
    const size = 2 * QEMU_IMAGE_BYTES;
    await world.qmp("block_resize", { "node-name": device!.inserted["node-name"], size });
    assert.equal(await promise, size);
    const disk = new Disk(frontend, world.guest.reactor);
    await disk.write(size - 512, Buffer.alloc(512, 9));
    assert.equal((await disk.read(size - 1, 1))[0], 9);
    await frontend[Symbol.asyncDispose]();
  }),
);

/** xvda to xvdp: QEMU gives a number to one disk in its life. */
const DISKS_PER_QEMU = 16;

for (const maxRingPageOrder of [0, 2]) {
  describe(`over ${1 << maxRingPageOrder} ring pages`, () => {
    let world: QemuWorld | undefined;
    let images = 0;
    after(() => world?.[Symbol.asyncDispose]());
    storeSuite("QEMU's backend behind our frontend", {
      usedBytes: 2 ** 20,
      async open() {
        if (images % DISKS_PER_QEMU === 0) {
          await world?.[Symbol.asyncDispose]();
          world = await QemuWorld.start();
        }
        assert.ok(world !== undefined);
        const paths = await world.plug(world.image(`suite-${images++}`));
        const frontend: BlockFrontend = await world.connect(paths, { maxRingPageOrder });
        assert.equal(frontend.negotiated.ringPages, 1 << maxRingPageOrder);
        return { store: frontend, reactor: world.guest.reactor };
      },
    });
  });
}
