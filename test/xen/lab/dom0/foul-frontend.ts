/**
 * Run in dom0: a frontend that plays foul on the vbd whose VDEV is named, once in every way it knows, and prints what it has
 * done. It throws where the backend does not do what it must: end the connection, or answer with an error; and serve the
 * next honest frontend as if nothing had been. With "slow" it leaves in the middle of reads, and comes back.
 */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { ScriptedFrontend } from "../../../../src/testing/scripted-frontend.ts";
import {
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../../../../src/wire/blkif.ts";
import { openHost } from "../../../../src/xen/host/index.ts";
import { backendPath, frontendPath, parseVdev } from "../../../../src/xen/vbd.ts";

/** The emulated processor is slow, and so is code that runs for the first time. */
const PATIENCE_MILLISECONDS = 60_000;
/** In which no slow read is answered. */
const SLOW_MILLISECONDS = 8000;

const [name = "", how] = process.argv.slice(2);
const vdev = parseVdev(name);
await using domain = await openHost();
const paths = {
  frontend: frontendPath(domain.id, vdev),
  backend: backendPath(domain.id, "vbd3", domain.id, vdev),
};

async function connected(): Promise<ScriptedFrontend> {
  const frontend = new ScriptedFrontend(domain, paths, PATIENCE_MILLISECONDS);
  await frontend.become(1);
  await frontend.connect(domain.id);
  return frontend;
}

/** What an honest frontend finds after each act. */
async function isSound(): Promise<void> {
  await using frontend = await connected();
  assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
  await frontend.close();
}

async function leave(frontend: ScriptedFrontend): Promise<void> {
  await frontend.become(6);
  await frontend.backendIs(6);
}

const acts: Record<string, (frontend: ScriptedFrontend) => Promise<void>> = {
  "producer index": async (frontend) => {
    frontend.publishIndex(100_000);
    await leave(frontend);
  },
  "grant references": async (frontend) => {
    for (const reference of [0, 7, 2 ** 20, 2 ** 32 - 1]) {
      const request = frontend.transfer(BLKIF_OP_WRITE, 0, 2);
      request.references[1] = reference;
      assert.equal(await frontend.status(request), BLKIF_RSP_ERROR);
    }
    await frontend.close();
  },
  segments: async (frontend) => {
    for (const [first, last] of [
      [7, 0],
      [0, 8],
      [255, 255],
    ] as const) {
      const request = frontend.transfer(BLKIF_OP_WRITE, 0, 1);
      request.firstSectors[0] = first;
      request.lastSectors[0] = last;
      assert.equal(await frontend.status(request), BLKIF_RSP_ERROR);
    }
    for (const count of [12, 255]) {
      const request = frontend.transfer(BLKIF_OP_READ, 0, 1);
      request.segmentCount = count;
      assert.equal(await frontend.status(request), BLKIF_RSP_ERROR);
    }
    await frontend.close();
  },
  "sector numbers": async (frontend) => {
    for (const sectorHigh of [1, 0x7fff_ffff, 0xffff_ffff]) {
      const request = frontend.transfer(BLKIF_OP_WRITE, 0, 1);
      request.sectorHigh = sectorHigh;
      assert.equal(await frontend.status(request), BLKIF_RSP_ERROR);
    }
    await frontend.close();
  },
  "events without requests": async (frontend) => {
    for (let i = 0; i < 20_000; i++) frontend.channel.notify();
    await frontend.close();
  },
  "states in any order": async (frontend) => {
    for (let i = 0; i < 40; i++) await frontend.become([1, 3, 4, 5, 2, 6, 9, 3][i % 8]!);
    // It may see a Closed of before.
    await leave(frontend);
  },
  "grants taken back": async (frontend) => {
    frontend.send(
      ...Array.from({ length: 16 }, (_, i) => frontend.transfer(BLKIF_OP_READ, 8 * i, 1, i)),
    );
    for (let i = 0; i < 16; i++) frontend.data.endAccess(i);
    await leave(frontend);
  },
};

if (how === "slow") {
  await using frontend = await connected();
  frontend.send(
    ...Array.from({ length: 32 }, (_, i) => frontend.transfer(BLKIF_OP_READ, 8 * i, 1, i)),
  );
  await frontend.become(6);
  process.stdout.write("reads\n");
  // Looking for its answer all the while would take the processor from the others.
  await sleep(SLOW_MILLISECONDS);
  await frontend.backendIs(6);
  await isSound();
} else {
  for (const [act, play] of Object.entries(acts)) {
    await using frontend = await connected();
    await play(frontend);
    await isSound();
    process.stdout.write(`${act}\n`);
  }
}
