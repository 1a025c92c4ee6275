/** A disk whose backend goes and comes: killed, restarted, given up; frozen, suspended and resumed; and a backend process
 * that outlives its parent, though not for long. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Machine, openStore, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { FaultyStore } from "../../src/testing/faulty-store.ts";
import { XenStoreClient } from "../../src/xen/xenstore/index.ts";
import { children } from "../support/children.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

const memory = parseDisk(["memory", "1M"], []);

function page(value: number): Buffer {
  return Buffer.alloc(4096, value);
}

/** What begins when its turn of the event loop comes. */
async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await sleep(5);
}

test("a disk that reconnects comes back by itself when its backend process was killed, with every request", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  await writeFile(image, new Uint8Array(2 ** 20));
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using disk = await machine.attach(parseDisk([image, "wdelay=20ms"], ["delay"]), {
    vdev: "xvda",
    link: "process",
    reconnect: true,
  });
  for (let round = 1; round <= 2; round++) {
    const [pid] = children();
    const writes = Array.from({ length: 64 }, (_, i) => disk.write(i * 4096, page(round * 64 + i)));
    await disk.read(0, 512);
    process.kill(pid!, "SIGKILL");
    await until(() => disk.state === "away");
    const away = await disk.information();
    assert.deepEqual(
      [away.state, away.backend.rings, away.backend.store.size, away.negotiated.queues],
      ["away", [], 2 ** 20, 1],
    );
    await Promise.all(writes);
    for (let i = 0; i < 64; i++)
      assert.equal((await disk.read(i * 4096, 1))[0], (round * 64 + i) & 255);
  }
  assert.equal((await disk.information()).state, "connected");
});

test("a disk whose backend cannot come back is given up with the reason, and nothing is left", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  await writeFile(image, new Uint8Array(2 ** 20));
  await using machine = await Machine.start({ reactor: new Reactor() });
  const disk = await machine.attach(parseDisk([image], []), {
    vdev: "xvda",
    link: "worker",
    reconnect: true,
  });
  let reason: Error | undefined;
  disk.store.subscribe({
    failed: (error) => {
      reason = error;
    },
  });
  await folder[Symbol.asyncDispose]();
  await assert.rejects(disk.restartBackend(), /disk\.img/);
  assert.equal((await disk.information()).state, "away");
  const read = assert.rejects(disk.read(0, 512), { code: "EIO" });
  await disk.frontend.abandon(new Error("given up"));
  await read;
  assert.match(String(reason), /given up/);
  assert.equal((await disk.information()).state, "failed");
  await disk[Symbol.asyncDispose]();
  await using again = await machine.attach(memory, { vdev: "xvda", link: "worker" });
  await again.write(0, page(1));
});

for (const link of ["thread", "worker", "process"] as const) {
  test(`a backend in a ${link} is restarted below a disk that reconnects`, async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("disk.img");
    await writeFile(image, new Uint8Array(2 ** 20));
    await using machine = await Machine.start({ reactor: new Reactor() });
    await using disk = await machine.attach(parseDisk([image], []), {
      vdev: "xvda",
      link,
      reconnect: true,
    });
    const writes = Array.from({ length: 100 }, (_, i) => disk.write(i * 4096, page(i)));
    await disk.restartBackend();
    writes.push(disk.write(100 * 4096, page(100)));
    await Promise.all(writes);
    for (let i = 0; i <= 100; i++) assert.equal((await disk.read(i * 4096, 1))[0], i);
  });
}

test("a disk that does not reconnect, or was given opened, refuses to have its backend restarted", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using disk = await machine.attach(memory, { vdev: "xvda" });
  await assert.rejects(disk.restartBackend(), { code: "EOPNOTSUPP" });
  await disk.write(0, page(1));
});

test("a frozen disk is quiet: what was sent has been carried out, and what comes waits until it thaws", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using disk = await machine.attach(parseDisk(["memory", "1M", "wdelay=5ms"], ["delay"]), {
    vdev: "xvda",
  });
  const early = Array.from({ length: 200 }, (_, i) => disk.write(i * 4096, page(i)));
  await disk.read(0, 512);
  const first = await disk.freeze();
  const second = await disk.freeze();
  assert.equal((await disk.information()).backend.queue?.inFlight, 0);
  let late = 0;
  const write = disk.write(0, page(9)).then(() => late++);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  await sleep(20);
  assert.equal(late, 0);
  second[Symbol.dispose]();
  await Promise.all([write, ...early]);
  assert.equal((await disk.read(0, 1))[0], 9);
});

test("a suspended disk goes on with its rings where it was cancelled, and else with new ones", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using disk = await machine.attach(memory, { vdev: "xvda" });
  for (const cancelled of [true, false]) {
    const writes = Array.from({ length: 64 }, (_, i) => disk.write(i * 4096, page(i)));
    await disk.suspend();
    assert.equal((await disk.information()).state, "suspended");
    await disk.resume({ cancelled });
    await Promise.all(writes);
  }
  assert.equal((await disk.information()).frontend.freezes.suspended > 0, true);
});

test("a backend process whose parent was killed ends soon, though a request of its disk never does", async () => {
  const program = `
    const { Machine, parseDisk } = await import(process.argv[1]);
    const machine = await Machine.start();
    const disk = await machine.attach(parseDisk(["memory", "1M", "rdelay=3600s"], ["delay"]), {
      vdev: "xvda", link: "process",
    });
    disk.read(0, 512).catch(() => {});
    while ((await disk.information()).backend.queue.requests === 0);
    console.log(machine.directory);
    setInterval(() => {}, 1000);
  `;
  const index = new URL("../../src/index.ts", import.meta.url).href;
  const flags = process.execArgv.filter((each) => each.startsWith("--conditions"));
  const parent = spawn(process.execPath, [...flags, "--eval", program, index], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise((resolve) => parent.once("close", resolve));
  let directory = "";
  for await (const line of createInterface(parent.stdout)) {
    directory = line;
    break;
  }
  const [child] = children(parent.pid);
  assert.ok(child !== undefined && existsSync(`/proc/${child}`));
  parent.kill("SIGKILL");
  await ended;
  await until(() => !existsSync(`/proc/${child}`));
  await rm(directory, { recursive: true });
});

test("a disk that is to go says so as a toolstack does, and is used until it is detached", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using store = await XenStoreClient.connect(machine.xenstoreSocket);
  const disk = await machine.attach(memory, { vdev: "xvda" });
  const { backend, frontend } = disk.paths;
  await disk.announceDetach();
  // As xen-blkfront leaves it for a disk that somebody has open.
  await until(async () => (await store.read(`${frontend}/error`)) !== undefined);
  assert.match((await store.read(`${frontend}/error`))!, /Device in use; refusing to close$/);
  const said = [await store.read(`${backend}/online`), await store.read(`${backend}/state`)];
  assert.deepEqual(said, ["0", "5"]);
  assert.equal(disk.state, "connected");
  await disk.write(0, page(7));
  assert.equal((await disk.read(0, 1))[0], 7);
  await disk[Symbol.asyncDispose]();
  assert.deepEqual([await store.list(backend), await store.list(frontend)], [undefined, undefined]);
});

for (const link of ["thread", "process"] as const) {
  test(`a disk in a ${link} that answers nothing is detached by force, and its requests end`, async () => {
    await using machine = await Machine.start({ reactor: new Reactor() });
    await using store = await XenStoreClient.connect(machine.xenstoreSocket);
    const reactor = machine.reactor;
    const stuck = new FaultyStore(await openStore(memory, { reactor }), reactor);
    const never = parseDisk(["memory", "1M", "rdelay=3600s"], ["delay"]);
    const disk = await machine.attach(link === "thread" ? stuck : never, { vdev: "xvda", link });
    stuck.hold();
    const read = disk.read(0, 512).catch((error: NodeJS.ErrnoException) => error.code);
    await until(async () => (await disk.information()).backend.queue?.requests === 1);
    // Whoever asked for it in good order waits as long as the disk.
    const orderly = disk[Symbol.asyncDispose]();
    // A process is killed with what it has in hand; memory of ours that a store has in hand is not.
    assert.equal(await disk.detachByForce(), link === "process");
    assert.equal(await read, "EIO");
    const left = [await store.list(disk.paths.backend), await store.list(disk.paths.frontend)];
    assert.deepEqual(left, [undefined, undefined]);
    stuck.release();
    await orderly;
    await using next = await machine.attach(memory, { vdev: "xvda" });
    assert.equal(next.state, "connected");
    if (link === "process") await stuck[Symbol.asyncDispose]();
  });
}
