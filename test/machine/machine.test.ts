/** A machine and its disks: attach, detach, death of a backend, and what is left behind (nothing). */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { test } from "node:test";
import { Machine, openStore, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { shows } from "../../src/testing/index.ts";
import { XenStoreClient } from "../../src/xen/xenstore/index.ts";
import { children } from "../support/children.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

const memory = parseDisk(["memory", "1M"], []);

test("a store that is open already is attached, and closed with the disk", async () => {
  const reactor = new Reactor();
  await using machine = await Machine.start({ reactor });
  let disposals = 0;
  const store = await openStore(memory, { reactor });
  const { [Symbol.asyncDispose]: dispose } = store;
  store[Symbol.asyncDispose] = async () => {
    disposals++;
    await dispose.call(store);
  };
  {
    await using disk = await machine.attach(store, { vdev: "xvda" });
    await disk.write(100, Buffer.from("hello"));
    assert.equal(Buffer.from(await disk.read(100, 5)).toString(), "hello");
  }
  assert.ok(disposals >= 1);
});

test(
  "two disks live side by side, and a name is given once",
  shows(["4.8.6"], async () => {
    await using machine = await Machine.start({ reactor: new Reactor() });
    await using a = await machine.attach(memory, { vdev: "xvda" });
    await using b = await machine.attach(memory, { vdev: "xvdb", link: "worker" });
    await assert.rejects(machine.attach(memory, { vdev: "xvda" }), /xvda is attached already/);
    await assert.rejects(machine.attach(memory, { vdev: "nonsense" }), { code: "EINVAL" });
    await a.write(0, Buffer.alloc(4096, 1));
    await b.write(0, Buffer.alloc(4096, 2));
    assert.deepEqual([(await a.read(0, 1))[0], (await b.read(0, 1))[0]], [1, 2]);
  }),
);

test(
  "after a detach no node, page, port or folder is left",
  shows(["4.1.9", "3.4.closed"], async () => {
    const machine = await Machine.start({ reactor: new Reactor() });
    const { directory } = machine;
    await using store = await XenStoreClient.connect(machine.xenstoreSocket);
    for (const link of ["thread", "worker", "process"] as const) {
      const disk = await machine.attach(memory, { vdev: "xvda", link });
      const { backendPath, frontendPath } = await disk.information();
      await disk.write(0, Buffer.alloc(65536, 1));
      const { grants } = (await disk.information()).frontend;
      assert.ok(grants.granted > 0);
      await disk[Symbol.asyncDispose]();
      assert.equal(await store.read(`${backendPath}/state`), undefined);
      assert.equal(await store.read(`${frontendPath}/state`), undefined);
    }
    await machine[Symbol.asyncDispose]();
    assert.equal(existsSync(directory), false);
    assert.deepEqual(children(), []);
  }),
);

test("a backend process that is killed fails its own disk and no other", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  await using other = await machine.attach(memory, { vdev: "xvda" });
  const before = children();
  const disk = await machine.attach(memory, { vdev: "xvdb", link: "process" });
  const [pid] = children().filter((child) => !before.includes(child));
  assert.ok(pid !== undefined);
  await disk.write(0, Buffer.alloc(4096, 1));
  const reads = Array.from({ length: 200 }, () => disk.read(0, 65536));
  process.kill(pid, "SIGKILL");
  const outcomes = await Promise.allSettled(reads);
  assert.ok(outcomes.every(({ status }) => status === "fulfilled" || status === "rejected"));
  await assert.rejects(disk.read(0, 4096), { code: "EIO" });
  await disk[Symbol.asyncDispose]();
  await other.write(0, Buffer.alloc(4096, 3));
  assert.equal((await other.read(0, 1))[0], 3);
  await using again = await machine.attach(memory, { vdev: "xvdb", link: "process" });
  assert.equal((await again.read(0, 1))[0], 0);
});

test(
  "a file grows while it is attached, and its disk with it",
  shows(["4.6.1"], async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("grow.img");
    await writeFile(image, new Uint8Array(2 ** 20));
    await using machine = await Machine.start({ reactor: new Reactor() });
    for (const link of ["thread", "worker"] as const) {
      await using disk = await machine.attach(parseDisk([image], []), { vdev: "xvda", link });
      const size = disk.size + 2 ** 20;
      await disk.resize(size);
      assert.equal(disk.size, size);
      await disk.write(size - 512, Buffer.alloc(512, 7));
      assert.equal((await disk.read(size - 1, 1))[0], 7);
    }
  }),
);

test("an attach that is given up leaves nothing behind", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  for (const link of ["thread", "process"] as const) {
    const signal = AbortSignal.abort(new Error("given up"));
    await assert.rejects(machine.attach(memory, { vdev: "xvda", link, signal }), /given up/);
  }
  assert.deepEqual(children(), []);
  assert.equal(machine.disks.size, 0);
});
