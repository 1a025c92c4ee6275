/** The published suite on every disk behind a ring, and on each link: whatever a store can do bare, its frontend can do. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Link, Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore, StoreSpec } from "../../src/store/block-store.ts";
import { type OpenedStore, storeSuite } from "../../src/testing/index.ts";
import { finished, type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";
import { whole } from "./whole.ts";

const SIZE = 2 ** 20;
const reactor = new Reactor();
let machine: Machine;
let folder: TemporaryFolder;
let nbdkit: { uri: string } & AsyncDisposable;
let images = 0;
let directFolder: string;

/** nbdkit's memory plugin on a socket. */
async function startNbdkit(): Promise<typeof nbdkit> {
  const socket = folder.file("nbdkit.sock");
  const child = spawn("nbdkit", ["-f", "-U", socket, "memory", "1M"], { stdio: "ignore" });
  const outcome = finished(child);
  for (let tries = 0; !existsSync(socket); tries++) {
    assert.ok(tries < 100, "nbdkit does not start");
    await sleep(50);
  }
  return {
    uri: `nbd+unix:///?socket=${socket}`,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await outcome;
    },
  };
}

before(async () => {
  folder = await temporaryFolder();
  machine = await Machine.start({ reactor });
  nbdkit = await startNbdkit();
  directFolder = await mkdtemp("/dev/shm/vbdkit-direct-");
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  await nbdkit[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
  await rm(directFolder, { recursive: true });
});

async function attach(spec: StoreSpec, link: Link, readOnly = false): Promise<BlockStore> {
  return whole(await machine.attach(spec, { vdev: "xvda", link, readOnly }));
}

function disk(link: Link, words: string, filters: string[] = []): () => Promise<OpenedStore> {
  return async () => ({
    reactor,
    store: await attach(parseDisk(words.split(" "), filters), link),
  });
}

function imageFile(link: Link): () => Promise<OpenedStore> {
  return async () => {
    const image = folder.file(`${images++}.img`);
    await writeFile(image, new Uint8Array(SIZE));
    const open = async (): Promise<OpenedStore> => ({
      reactor,
      store: await attach(parseDisk(["file", image], []), link),
      reopen: open,
    });
    return await open();
  };
}

/** On tmpfs, whose blocks are 4 KiB with O_DIRECT: the ring's are 512 bytes. */
async function directFile(): Promise<OpenedStore> {
  const image = join(directFolder, `${images++}.img`);
  await writeFile(image, new Uint8Array(SIZE));
  const open = async (): Promise<OpenedStore> => ({
    reactor,
    store: await attach(parseDisk(["file", image, "cache=none"], []), "thread"),
    reopen: open,
  });
  return await open();
}

function pattern(offset: number, length: number): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(length + 16));
  const start = offset - (offset % 8);
  for (let at = 0; at < length + 8; at += 8) bytes.setBigUint64(at, BigInt(start + at));
  return new Uint8Array(bytes.buffer, offset - start, length);
}

for (const link of ["thread", "worker", "process"] as const) {
  describe(`in a ${link}`, () => {
    storeSuite("a file behind a ring", { open: imageFile(link) });
    storeSuite("an NBD export behind a ring", {
      open: async () => {
        const store = await attach(parseDisk([nbdkit.uri], []), link);
        return { reactor, store };
      },
      // The export outlives each test, with what the last one wrote.
      forgets: true,
    });
    storeSuite("delay, error, log and cow behind a ring", {
      open: disk(link, "memory 1M rdelay=1ms error-seed=1", ["delay", "error", "log", "cow"]),
    });
  });
}

// What these do is the same wherever they are, and each test of the suite starts a backend.
describe("in this thread alone", () => {
  storeSuite("a file past the page cache behind a ring", { open: directFile });
  storeSuite("memory behind a ring", { open: disk("thread", "memory 1M") });
  storeSuite("null behind a ring", { open: disk("thread", "null 1M"), forgets: true });
  storeSuite("pattern behind a ring", {
    open: disk("thread", "pattern 1M"),
    readOnly: true,
    contents: pattern,
  });
});

test("a disk that a worker or process cannot open is one clear message, and nothing is left", async () => {
  for (const link of ["worker", "process"] as const) {
    const spec = parseDisk([folder.file("none.img")], []);
    await assert.rejects(machine.attach(spec, { vdev: "xvdb", link }), /none\.img/);
  }
  await rm(folder.file("none.img"), { force: true });
  await using again = await machine.attach(parseDisk(["memory", "1M"], []), { vdev: "xvdb" });
  assert.equal(again.vdev, "xvdb");
});
