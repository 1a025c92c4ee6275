/** A backend before frontends of every kind: honest, old, hasty, confused and hostile. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { BlockBackend } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { openStore } from "../../src/store/registry.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
  type BlkifProtocol,
} from "../../src/wire/blkif.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd } from "../../src/xen/toolstack.ts";
import { backendWorld as world } from "./backend-world.ts";
import { ScriptedFrontend } from "./scripted-frontend.ts";

for (const protocol of ["x86_64-abi", "x86_32-abi", "arm-abi"] satisfies BlkifProtocol[]) {
  for (const ringOrder of [0, 2, 4]) {
    test(
      `data written by a frontend of ${protocol} with ${1 << ringOrder} ring pages reads back`,
      shows(["1.1", "1.2", "2.1", "2.2", "2.3", "2.6"], async () => {
        await using at = await world();
        const { frontend } = at;
        await frontend.connect(0, { protocol, ringOrder });
        for (let i = 0; i < 11; i++) frontend.page(i).fill(65 + i);
        assert.equal(
          await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 16, 11)),
          BLKIF_RSP_OKAY,
        );
        const written = await at.disk.read(16 * 512, 11 * 4096);
        for (let i = 0; i < 11; i++) assert.equal(written[i * 4096], 65 + i);
        const read = frontend.transfer(BLKIF_OP_READ, 24, 10, 11);
        assert.equal(await frontend.status(read), BLKIF_RSP_OKAY);
        for (let i = 0; i < 10; i++)
          assert.ok(frontend.page(11 + i).every((byte) => byte === 66 + i));
      }),
    );
  }
}

test(
  "a frontend that writes no protocol key is of x86_32-abi, as Linux takes it",
  shows(["2.4"], async () => {
    await using at = await world();
    await at.frontend.connect(0, { protocol: null });
    assert.equal(at.backend.negotiated?.protocol, "x86_32-abi");
    assert.equal(
      await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 1)),
      BLKIF_RSP_OKAY,
    );
  }),
);

test(
  "a frontend that goes straight to Connected is served",
  shows(["3.4.direct"], async () => {
    await using at = await world();
    await at.frontend.connect(0, { state: 4 });
    assert.equal(
      await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 1)),
      BLKIF_RSP_OKAY,
    );
  }),
);

test(
  "an indirect request of 256 segments moves a megabyte, and only its used references are read",
  shows(["1.9", "1.17", "4.2.1", "4.2.3"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0, { pages: 258, ringOrder: 1 });
    const table = new DataView(frontend.page(256).buffer, frontend.page(256).byteOffset, 4096);
    for (let i = 0; i < 256; i++) {
      frontend.page(i).fill(i);
      table.setUint32(i * 8, frontend.data.references[i]!, true);
      table.setUint8(i * 8 + 5, 7);
    }
    const request = frontend.request(BLKIF_OP_INDIRECT, {
      indirectOperation: BLKIF_OP_WRITE,
      indirectSegmentCount: 256,
    });
    request.indirectReferences[0] = frontend.data.references[256]!;
    frontend.send(request);
    const response = await frontend.receive();
    assert.equal(response.status, BLKIF_RSP_OKAY);
    assert.equal(response.operation, BLKIF_OP_WRITE, "the inner operation, which Linux compares");
    const written = await at.disk.read(0, 2 ** 20);
    for (let i = 0; i < 256; i++) assert.equal(written[i * 4096 + 4095], i);
  }),
);

test(
  "a barrier inside an indirect request, as FreeBSD sends it, is carried out",
  shows(["4.2.4"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0);
    const table = new DataView(frontend.page(31).buffer, frontend.page(31).byteOffset, 4096);
    for (let i = 0; i < 12; i++) {
      frontend.page(i).fill(0x42);
      table.setUint32(i * 8, frontend.data.references[i]!, true);
      table.setUint8(i * 8 + 5, 7);
    }
    const request = frontend.request(BLKIF_OP_INDIRECT, {
      indirectOperation: BLKIF_OP_WRITE_BARRIER,
      indirectSegmentCount: 12,
    });
    // FreeBSD fills all eight, with whatever it has.
    request.indirectReferences.fill(0xdeadbeef);
    request.indirectReferences[0] = frontend.data.references[31]!;
    assert.equal(await frontend.status(request), BLKIF_RSP_OKAY);
    assert.ok((await at.disk.read(0, 12 * 4096)).every((byte) => byte === 0x42));
  }),
);

test(
  "flush, barrier and discard are answered, with and without data",
  shows(["1.4", "1.5", "1.7", "1.3"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.status(frontend.request(BLKIF_OP_FLUSH_DISKCACHE)), BLKIF_RSP_OKAY);
    assert.equal(await frontend.status(frontend.request(BLKIF_OP_WRITE_BARRIER)), BLKIF_RSP_OKAY);
    frontend.page(0).fill(9);
    for (const operation of [BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER]) {
      const sector = operation * 8;
      assert.equal(await frontend.status(frontend.transfer(operation, sector, 1)), BLKIF_RSP_OKAY);
      assert.equal((await at.disk.read(sector * 512, 1))[0], 9);
    }
    const discard = frontend.request(BLKIF_OP_DISCARD, { sectorLow: 16, discardSectorsLow: 8 });
    assert.equal(await frontend.status(discard), BLKIF_RSP_OKAY);
    assert.equal((await at.disk.read(16 * 512, 1))[0], 0);
  }),
);

test(
  "a broken request gets an error by the rule's name, and the ring lives on",
  shows(["1.10", "1.11", "1.12", "1.13", "1.14", "1.6", "4.7.8"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0);
    const beyond = frontend.transfer(BLKIF_OP_READ, 0, 1);
    beyond.lastSectors[0] = 9;
    const ungranted = frontend.transfer(BLKIF_OP_READ, 0, 2);
    ungranted.references[1] = 31000;
    const cases = [
      [frontend.request(4), BLKIF_RSP_EOPNOTSUPP],
      [frontend.request(200), BLKIF_RSP_EOPNOTSUPP],
      [frontend.transfer(BLKIF_OP_READ, 2048, 1), BLKIF_RSP_ERROR],
      [frontend.transfer(BLKIF_OP_WRITE, 2041, 1), BLKIF_RSP_ERROR],
      [beyond, BLKIF_RSP_ERROR],
      [ungranted, BLKIF_RSP_ERROR],
      [frontend.request(BLKIF_OP_READ, { segmentCount: 12 }), BLKIF_RSP_ERROR],
    ] as const;
    for (const [request, status] of cases) assert.equal(await frontend.status(request), status);
    assert.deepEqual(at.backend.counters?.brokenRules, {
      unknownOperation: 2,
      endOfDevice: 2,
      segmentSectors: 1,
      grant: 1,
      segmentCount: 1,
    });
    assert.equal(at.backend.counters?.mappedPages, 0);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
  }),
);

test(
  "a read-only vbd refuses writes whatever the frontend does, and answers flushes",
  shows(["4.5.6", "1.4", "4.4.7"], async () => {
    await using at = await world({ readOnly: true });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("info"), "4");
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1)), BLKIF_RSP_ERROR);
    assert.equal(await frontend.status(frontend.request(BLKIF_OP_FLUSH_DISKCACHE)), BLKIF_RSP_OKAY);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }),
);

test(
  "an impossible request index halts the ring and goes to Closing, without a crash or a spin",
  shows(["2.13"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0);
    frontend.publishIndex(100_000);
    await frontend.backendIs(5);
    assert.match((await frontend.backendKey("error")) ?? "", /request producer index/);
    const before = process.cpuUsage();
    await sleep(200);
    const { user, system } = process.cpuUsage(before);
    assert.ok(user + system < 150_000, "it does not spin");
    await frontend.become(6);
    await frontend.backendIs(6);
    assert.equal(at.dom0.grants.counters.mapped, 0);
  }),
);

for (const [what, keys] of [
  ["a ring reference that was never granted", { "ring-ref": "30000" }],
  ["a ring reference that is no number", { "ring-ref": "eight" }],
  ["a port that was never offered", { "event-channel": "4000" }],
  ["a protocol that nobody knows", { protocol: "vax-abi" }],
  ["a ring of too many pages", { "ring-page-order": "9" }],
  ["a ring order that is no number", { "ring-page-order": "-1" }],
] as const) {
  test(
    `${what} is reported, and nothing stays mapped`,
    shows("protocol" in keys ? ["2.5"] : [], async () => {
      await using at = await world();
      const { frontend } = at;
      await frontend.backendIs(2);
      await frontend.offer(0, { keys });
      await frontend.backendIs(5);
      const error = (await frontend.backendKey("error")) ?? "";
      assert.match(error, "protocol" in keys ? /vax-abi/ : /./);
      assert.equal(at.dom0.grants.counters.mapped, 0);
    }),
  );
}

test(
  "a frontend that closes and comes back finds the device again, as GRUB hands over to a kernel",
  shows(["4.6.8", "3.4.reconnect"], async () => {
    await using at = await world();
    for (let round = 0; round < 3; round++) {
      const frontend = new ScriptedFrontend(at.guest, at.frontend.paths);
      if (round > 0) await frontend.become(1);
      await frontend.connect(0);
      assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
      await frontend.close();
      assert.equal(at.dom0.grants.counters.mapped, 0);
      await frontend[Symbol.asyncDispose]();
    }
  }),
);

test("requests in flight when the frontend closes are finished before their pages are given back", async () => {
  await using at = await world({ delay: "50ms" });
  const { frontend } = at;
  await frontend.connect(0);
  frontend.page(0).fill(3);
  frontend.send(frontend.transfer(BLKIF_OP_WRITE, 0, 1), frontend.transfer(BLKIF_OP_READ, 8, 1, 1));
  await turn();
  await frontend.become(6);
  await frontend.backendIs(6);
  assert.equal(at.dom0.grants.counters.mapped, 0);
  assert.equal((await at.disk.read(0, 1))[0], 3);
});

test("a frontend that toggles its state as fast as it can leaves nothing behind", async () => {
  await using at = await world();
  const { frontend } = at;
  await frontend.backendIs(2);
  await frontend.offer(0);
  const states = [4, 6, 1, 3, 5, 6, 1, 4, 3, 6, 2, 8, 7, 0, 6];
  await Promise.all(states.map((state) => frontend.become(state)));
  await frontend.become(6);
  await frontend.backendIs(6);
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

test(
  "persistent pages are kept from request to request and given back at the end",
  shows(["4.1.1", "4.1.9", "3.2.feature-persistent"], async () => {
    await using at = await world();
    const { frontend } = at;
    await frontend.connect(0, { persistent: true });
    for (let i = 0; i < 5; i++) {
      assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
    }
    assert.equal(at.dom0.grants.counters.mapped, 11 + 1, "the pages and the ring");
    await frontend.close();
    assert.equal(at.dom0.grants.counters.mapped, 0);
  }),
);

test(
  "a frontend that wrote its ring before the backend first looked is served",
  shows(["3.4.initialised"], async () => {
    const ends = new AsyncDisposableStack();
    await using _ends = ends;
    const reactor = new Reactor();
    const machine = ends.use(await EmbeddedMachine.create({ reactor, memoryPages: 1024 }));
    const dom0 = await machine.createDomain(0);
    const guest = await machine.createDomain(1);
    await createDomainNodes(dom0.store, 0, "Domain-0");
    await createDomainNodes(dom0.store, 1, "guest");
    const paths = await createVbd(dom0.store, {
      frontendDomid: 1,
      backendDomid: 0,
      vdev: 51712,
      readOnly: false,
      params: "test",
    });
    const frontend = ends.use(new ScriptedFrontend(guest, paths));
    await frontend.offer(0);
    const memory = { driver: "memory", parameters: { size: "1M" }, filters: [] };
    const store = await openStore(memory, { reactor });
    ends.use(await BlockBackend.open(dom0, paths.backend, store));
    await frontend.backendIs(4);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }),
);

test(
  "one ring page may be named ring-ref0",
  shows(["2.9"], async () => {
    await using at = await world();
    const { frontend, guest } = at;
    await frontend.backendIs(2);
    await frontend.offer(0, { state: 1 as 3 });
    const front = frontend.paths.frontend;
    await guest.store.write(`${front}/ring-ref0`, (await guest.store.read(`${front}/ring-ref`))!);
    await guest.store.remove(`${front}/ring-ref`);
    await frontend.become(3);
    await frontend.backendIs(4);
  }),
);
