/** A ring's memory is not the backend's any more once it has closed; ring pages that lie apart are unmapped then, so
 * that one late touch would be the end of the process. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Drain } from "../../src/block/backend/drain.ts";
import { BackendQueue } from "../../src/block/backend/queue.ts";
import { defaultBackendLimits } from "../../src/block/features.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { FrontRing } from "../../src/ring/front-ring.ts";
import type { BlockRequest, BlockStore } from "../../src/store/block-store.ts";
import { openStore, parseDisk } from "../../src/store/index.ts";
import { systemClock } from "../../src/util/clock.ts";
import { BLKIF_OP_FLUSH_DISKCACHE, BlkifRequest, blkifLayout } from "../../src/wire/blkif.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";

for (const halted of [false, true]) {
  const how = halted ? "a halted ring" : "a ring";
  test(`${how} that is closed between a completion and its kick is touched no more`, async () => {
    const reactor = new Reactor();
    await using machine = await EmbeddedMachine.create({ reactor, memoryPages: 1024 });
    const dom0 = await machine.createDomain(0);
    const guest = await machine.createDomain(1, { shared: true });
    const pages = guest.grants.allocate(4);
    assert.ok(pages !== undefined);
    for (let page = 0; page < pages.count; page++) pages.grant(page, 0, false);
    const apart = [pages.references[2]!, pages.references[0]!];
    const ring = dom0.grants.mapContiguous(1, apart, false);
    assert.ok(typeof ring === "object");
    const layout = blkifLayout("x86_64-abi");
    const front = new FrontRing(ring.bytes, layout);
    const { buffer, byteOffset } = ring.bytes;
    const indexes = new Int32Array(buffer, byteOffset, 4);
    const channel = guest.events.allocateUnbound(0);
    const inFlight: BlockRequest[] = [];
    await using memory = await openStore(parseDisk(["memory", "1M"]), { reactor });
    const store: BlockStore = Object.assign(Object.create(memory), {
      submit: (request: BlockRequest) => inFlight.push(request),
    });
    const queue = new BackendQueue({
      domain: dom0,
      peer: 1,
      ring,
      layout,
      channel: dom0.events.bindInterdomain(1, channel.port),
      store,
      facts: {
        sectors: 100,
        readOnly: false,
        sectorsPerBlock: 1,
        sectorUnit: 512,
        segmentUnit: 512,
        maxIndirectSegments: 0,
        discard: false,
        secureDiscard: false,
      },
      clock: systemClock,
      path: "test",
      index: 0,
      limits: defaultBackendLimits,
      persistent: false,
      drain: new Drain(),
      journal: undefined,
      onunsupported: () => {},
      onhalted: () => {},
    });
    const flush = new BlkifRequest();
    flush.operation = BLKIF_OP_FLUSH_DISKCACHE;
    front.push(flush);
    front.publish();
    reactor.settle();
    if (halted) {
      Atomics.store(indexes, 0, 100_000);
      channel.notify();
      reactor.settle();
    }
    assert.equal(queue.halted, halted);
    assert.equal(inFlight.length, 1);
    inFlight[0]!.status = 0;
    inFlight[0]!.owner.completed(inFlight[0]!);
    await queue.close();
    reactor.settle();
    assert.equal(dom0.grants.counters.mapped, 0);
  });
}
