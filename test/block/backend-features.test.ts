/** What a backend offers follows what its disk can, what the toolstack allows, and what was asked for. */
import assert from "node:assert/strict";
import { truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type DialectName, dialects } from "../../src/block/features.ts";
import { Operation } from "../../src/store/block-store.ts";
import { openStore } from "../../src/store/registry.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import { temporaryFolder } from "../support/vbdkit.ts";
import { backendWorld } from "./backend-world.ts";
import { CoarseStore, LackingStore, memoryStore } from "./coarse-store.ts";
import type { ScriptedFrontend } from "./scripted-frontend.ts";

async function keyBecomes(frontend: ScriptedFrontend, key: string, value: string): Promise<void> {
  for (let tries = 0; (await frontend.backendKey(key)) !== value; tries++) {
    assert.ok(tries < 500, `${key} stays ${await frontend.backendKey(key)}`);
    await sleep(5);
  }
}

for (const operation of [BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER]) {
  test(
    `a disk that cannot flush answers so to operation ${operation}, and neither flush nor barrier is offered any more`,
    shows(["4.3.6", "4.3.1", "1.11"], async () => {
      await using at = await backendWorld({
        store: async (reactor) =>
          new LackingStore(await memoryStore(reactor), [Operation.flush], reactor),
      });
      const { frontend } = at;
      await frontend.connect(0);
      assert.equal(await frontend.backendKey("feature-flush-cache"), "1");
      assert.equal(await frontend.backendKey("feature-barrier"), "1");
      assert.equal(await frontend.status(frontend.request(operation)), BLKIF_RSP_EOPNOTSUPP);
      await keyBecomes(frontend, "feature-flush-cache", "0");
      await keyBecomes(frontend, "feature-barrier", "0");
      assert.equal(await frontend.state("backend"), 4);
      assert.deepEqual(
        [at.backend.negotiated?.flush, at.backend.negotiated?.barrier],
        [false, false],
      );
      assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1)), BLKIF_RSP_OKAY);
      await frontend.close();
      await frontend.become(1);
      await frontend.connect(0);
      assert.equal(await frontend.backendKey("feature-flush-cache"), "0", "nor to who comes next");
    }),
  );
}

test(
  "a disk that cannot discard after all answers so, and discard is not offered any more",
  shows(["4.4.1", "4.3.6"], async () => {
    await using at = await backendWorld({
      store: async (reactor) =>
        new LackingStore(await memoryStore(reactor), [Operation.discard], reactor),
    });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("feature-discard"), "1");
    const discard = () => frontend.request(BLKIF_OP_DISCARD, { discardSectorsLow: 8 });
    assert.equal(await frontend.status(discard()), BLKIF_RSP_EOPNOTSUPP);
    await keyBecomes(frontend, "feature-discard", "0");
    assert.equal(await frontend.status(discard()), BLKIF_RSP_EOPNOTSUPP);
    await frontend.close();
    await frontend.become(1);
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("feature-discard"), "0", "nor to who comes next");
  }),
);

test(
  "a toolstack's discard-enable of 0 is honoured",
  shows(["4.4.2"], async () => {
    await using at = await backendWorld({ nodes: { "discard-enable": "0" } });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("feature-discard"), "0");
    const discard = frontend.request(BLKIF_OP_DISCARD, { discardSectorsLow: 8 });
    assert.equal(await frontend.status(discard), BLKIF_RSP_EOPNOTSUPP);
  }),
);

test(
  "a secure discard is refused where the disk has none, and others go on",
  shows(["1.8", "4.4.4"], async () => {
    await using at = await backendWorld();
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("discard-secure"), "0");
    const fields = { discardSectorsLow: 8 };
    const secure = { ...fields, discardFlag: BLKIF_DISCARD_SECURE };
    assert.equal(
      await frontend.status(frontend.request(BLKIF_OP_DISCARD, secure)),
      BLKIF_RSP_EOPNOTSUPP,
    );
    assert.equal(await frontend.status(frontend.request(BLKIF_OP_DISCARD, fields)), BLKIF_RSP_OKAY);
    assert.equal(await frontend.backendKey("feature-discard"), "1");
  }),
);

for (const [mode, status, info] of [
  ["r", BLKIF_RSP_ERROR, "4"],
  ["w", BLKIF_RSP_OKAY, "0"],
  ["w!", BLKIF_RSP_OKAY, "0"],
] as const) {
  test(
    `mode ${mode} shows info ${info}`,
    shows(["4.5.3", "4.5.4"], async () => {
      await using at = await backendWorld({ nodes: { mode } });
      const { frontend } = at;
      await frontend.connect(0);
      assert.equal(await frontend.backendKey("info"), info);
      assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1)), status);
    }),
  );
}

test(
  "a removable CD-ROM that cannot be written says so in info",
  shows(["4.5.4"], async () => {
    await using at = await backendWorld({ vbd: { cdrom: true, removable: true, readOnly: true } });
    await at.frontend.connect(0);
    assert.equal(await at.frontend.backendKey("info"), "7");
  }),
);

test(
  "a disk of 4 KiB blocks is offered in sectors of 512 bytes, each of which can be written",
  shows(["4.5.1", "4.5.2"], async () => {
    await using at = await backendWorld({
      store: async (reactor) => new CoarseStore(await memoryStore(reactor), 4096, reactor),
    });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("sector-size"), "512");
    assert.equal(await frontend.backendKey("physical-sector-size"), "4096");
    frontend.page(0).fill(1);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1)), BLKIF_RSP_OKAY);
    frontend.page(1).fill(2);
    const sector = frontend.transfer(BLKIF_OP_WRITE, 3, 1, 1);
    sector.lastSectors[0] = 0;
    assert.equal(await frontend.status(sector), BLKIF_RSP_OKAY);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1, 2)), BLKIF_RSP_OKAY);
    const read = frontend.page(2);
    for (let i = 0; i < 8; i++) assert.equal(read[i * 512], i === 3 ? 2 : 1);
  }),
);

test(
  "logical blocks of 4 KiB, where asked for, are checked one by one",
  shows(["1.15", "4.5.1"], async () => {
    await using at = await backendWorld({ limits: { sectorSize: 4096 } });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("sector-size"), "4096");
    assert.equal(await frontend.backendKey("sectors"), "2048", "in 512 bytes, as blkif.h says");
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 8, 2)), BLKIF_RSP_OKAY);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 4, 1)), BLKIF_RSP_ERROR);
    const half = frontend.transfer(BLKIF_OP_READ, 8, 1);
    half.lastSectors[0] = 3;
    assert.equal(await frontend.status(half), BLKIF_RSP_ERROR);
    assert.deepEqual(at.backend.counters?.brokenRules, { alignment: 2 });
  }),
);

for (const dialect of Object.keys(dialects) as DialectName[]) {
  test(`blocks of 4 KiB read and written in the units of ${dialect}`, async () => {
    await using at = await backendWorld({ limits: { sectorSize: 4096, dialect } });
    const { frontend } = at;
    const keys = { "feature-large-sector-size": "1" };
    await frontend.connect(0, { keys });
    const { sectors, sectorNumber, segments } = dialects[dialect];
    const unit = (name: string) => (name === "512" ? 8 : 1);
    assert.equal(await frontend.backendKey("sectors"), String(256 * unit(sectors)));
    // The last block of the disk, from one page.
    const last = (operation: number, page: number) => {
      const request = frontend.transfer(operation, 255 * unit(sectorNumber), 1, page);
      request.lastSectors[0] = unit(segments) - 1;
      return request;
    };
    frontend.page(0).fill(0x5a);
    assert.equal(await frontend.status(last(BLKIF_OP_WRITE, 0)), BLKIF_RSP_OKAY);
    assert.ok((await at.disk.read(255 * 4096, 4096)).every((byte) => byte === 0x5a));
    assert.equal(await frontend.status(last(BLKIF_OP_READ, 1)), BLKIF_RSP_OKAY);
    assert.ok(frontend.page(1).every((byte) => byte === 0x5a));
    const beyond = last(BLKIF_OP_READ, 1);
    beyond.sectorLow = 256 * unit(sectorNumber);
    assert.equal(await frontend.status(beyond), BLKIF_RSP_ERROR);
    const outside = last(BLKIF_OP_READ, 1);
    outside.lastSectors[0] = 2 * unit(segments) - 1;
    assert.equal(await frontend.status(outside), BLKIF_RSP_ERROR, "no page has two blocks");
  });
}

test(
  "feature-large-sector-size is needed by its own dialect alone",
  shows(["3.2.feature-large-sector-size"], async () => {
    await using qemu = await backendWorld({
      limits: { sectorSize: 4096, dialect: "qemu-windows" },
    });
    await qemu.frontend.backendIs(2);
    await qemu.frontend.offer(0);
    await qemu.frontend.backendIs(5);
    assert.match((await qemu.frontend.backendKey("error")) ?? "", /sectors of 4096/);
    await using spec = await backendWorld({ limits: { sectorSize: 4096 } });
    await spec.frontend.connect(0, { keys: { "feature-large-sector-size": "1" } });
    assert.equal(await spec.frontend.backendKey("sectors"), "2048");
  }),
);

test(
  "a file that grows or shrinks outside is told to the frontend",
  shows(["4.6.1"], async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("image");
    await writeFile(image, new Uint8Array(65536));
    const parameters = { file: image };
    await using at = await backendWorld({
      store: (reactor) => openStore({ driver: "file", parameters, filters: [] }, { reactor }),
    });
    const { frontend } = at;
    await frontend.connect(0);
    assert.equal(await frontend.backendKey("sectors"), "128");
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 128, 1)), BLKIF_RSP_ERROR);
    await truncate(image, 131072);
    await keyBecomes(frontend, "sectors", "256");
    assert.equal(await frontend.state("backend"), 4);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 128, 1)), BLKIF_RSP_OKAY);
    await truncate(image, 32768);
    await keyBecomes(frontend, "sectors", "64");
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 64, 1)), BLKIF_RSP_ERROR);
  }),
);
