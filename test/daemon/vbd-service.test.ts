/** vbds that a toolstack makes and removes, as a service meets them. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  askToClose,
  createDomainNodes,
  removeVbd,
  takeOffline,
  vbdPaths,
} from "../../src/xen/toolstack.ts";
import { GUEST, IMAGE_BYTES, ServiceWorld } from "./service-world.ts";

const XVDA = 51712;
const XVDB = 51728;

test("a vbd that a toolstack makes is served, and let go when the toolstack unplugs it", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA);
  const disk = await world.connect(paths);
  assert.equal(disk.size, IMAGE_BYTES);
  await disk.write(4096, Buffer.alloc(4096, 7));
  assert.ok((await disk.read(4096, 4096)).every((byte) => byte === 7));
  const [served] = world.service.vbds;
  assert.equal(served?.request.text, "a.img");
  assert.equal(served?.store?.info.size, IMAGE_BYTES);
  await askToClose(world.dom0.store, paths);
  await disk[Symbol.asyncDispose]();
  await world.until(`${paths.backend}/state`, "6");
  while (world.service.vbds.length > 0) await sleep(5);
  assert.deepEqual(readdirSync(join(world.folder, "journals")), []);
  await removeVbd(world.dom0.store, paths);
  // The same once more.
  const again = await world.connect(await world.make(XVDA));
  assert.ok((await again.read(4096, 4096)).every((byte) => byte === 7));
});

test("a vbd of others is left alone", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA, "theirs");
  const ours = await world.make(XVDB);
  await world.until(`${ours.backend}/state`, "2");
  assert.equal(await world.dom0.store.read(`${paths.backend}/state`), "1");
});

test("a vbd that cannot be served says why where the toolstack looks, and disturbs no other", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA, "bad");
  await world.until(`${paths.backend}/hotplug-status`, "error");
  assert.equal(await world.dom0.store.read(`${paths.backend}/hotplug-error`), "bad: is no disk");
  await world.connect(await world.make(XVDB));
});

test("a vbd that cannot be served lets its toolstack go on to the script, and closes when it is to go", async () => {
  await using world = await ServiceWorld.start();
  const { store } = world.dom0;
  const paths = await world.make(XVDA, "bad");
  await world.until(`${paths.backend}/state`, "2");
  assert.equal(await store.read(`${paths.backend}/hotplug-status`), "error");
  await askToClose(store, paths);
  await world.until(`${paths.backend}/state`, "6");
  await removeVbd(store, paths);
  // A disk there is one now.
  await world.connect(await world.make(XVDA));
});

test("a vbd that no frontend uses is closed when the toolstack takes it offline", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA);
  await world.until(`${paths.backend}/state`, "2");
  await takeOffline(world.dom0.store, paths);
  await world.until(`${paths.backend}/state`, "6");
});

test("nothing is written any more into a directory that was removed under a connected guest", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA);
  await world.connect(paths);
  await removeVbd(world.dom0.store, paths);
  while (world.service.vbds.length > 0) await sleep(5);
  await sleep(50);
  assert.deepEqual(await world.dom0.store.list("/local/domain/0/backend/vbd3"), []);
  assert.equal(world.dom0.grants.counters.mapped, 0);
});

test("in a driver domain the directory goes with the device, once the toolstack has seen it closed", async () => {
  await using world = await ServiceWorld.start(5);
  const paths = await world.make(XVDA);
  const disk = await world.connect(paths);
  await askToClose(world.dom0.store, paths);
  await disk[Symbol.asyncDispose]();
  await world.until(`${paths.backend}/state`, "6");
  await world.until(`${paths.backend}/state`, undefined);
});

test("in a driver domain a vbd that is made again while its old directory stays is not removed", async () => {
  await using world = await ServiceWorld.start(5);
  const paths = await world.make(XVDA);
  await world.until(`${paths.backend}/state`, "2");
  await takeOffline(world.dom0.store, paths);
  await world.until(`${paths.backend}/state`, "6");
  await removeVbd(world.dom0.store, paths);
  const disk = await world.connect(await world.make(XVDA));
  // The first one's time is over when a second one's, which began later, is.
  const other = await world.make(XVDB);
  await world.until(`${other.backend}/state`, "2");
  await takeOffline(world.dom0.store, other);
  await world.until(`${other.backend}/state`, undefined);
  await disk.write(0, Buffer.alloc(4096, 7));
});

test("in a driver domain a vbd that cannot be served never seems to be, and is removed with its toolstack's leave", async () => {
  await using world = await ServiceWorld.start(5);
  const { store } = world.dom0;
  const paths = await world.make(XVDA, "bad");
  await world.until(`${paths.backend}/hotplug-status`, "error");
  assert.equal(await store.read(`${paths.backend}/hotplug-error`), "bad: is no disk");
  assert.equal(await store.read(`${paths.backend}/state`), "1");
  await askToClose(store, paths);
  await world.until(`${paths.backend}/state`, "6");
  await world.until(`${paths.backend}/state`, undefined);
});

test("a service that leaves is followed by another, and the guest writes on", async () => {
  await using world = await ServiceWorld.start();
  const disk = await world.connect(await world.make(XVDA));
  for (let life = 1; life <= 3; life++) {
    await world.service.leave();
    const writing = disk.write(0, Buffer.alloc(8192, life));
    await world.begin();
    await writing;
    assert.ok((await disk.read(0, 8192)).every((byte) => byte === life));
  }
});

test("a service that leaves while a vbd goes keeps no journal of it", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA);
  const disk = await world.connect(paths);
  await disk.write(0, Buffer.alloc(4096, 1));
  const journals = () => readdirSync(join(world.folder, "journals"));
  assert.equal(journals().length, 1);
  const leaving = world.service.leave();
  await world.dom0.store.remove(paths.backend);
  await leaving;
  assert.deepEqual(journals(), []);
});

test("a vbd that is looked at while another kind of vbd comes has one backend", async () => {
  await using world = await ServiceWorld.start();
  await world.service.leave();
  const gate = Promise.withResolvers<void>();
  using _open = { [Symbol.dispose]: gate.resolve };
  world.resolving = gate.promise;
  await world.begin(["vbd3", "vbd"]);
  const paths = await world.make(XVDA);
  await world.untilAsked(paths.backend);
  const other = "/local/domain/0/backend/vbd/9/51712";
  await world.dom0.store.write(`${other}/state`, "1");
  await world.untilAsked(other);
  assert.equal(world.asked.filter((path) => path === paths.backend).length, 1);
  gate.resolve();
  const disk = await world.connect(paths);
  await disk.write(0, Buffer.alloc(4096, 3));
  assert.equal(world.service.vbds.length, 1);
});

test("a vbd that was removed and made again before anybody looked is a new one", async () => {
  await using world = await ServiceWorld.start();
  const paths = await world.make(XVDA);
  await world.until(`${paths.backend}/state`, "2");
  await world.makeAgain(XVDA);
  await world.until(`${paths.backend}/state`, "2");
  const disk = await world.connect(paths);
  await disk.write(0, Buffer.alloc(4096, 2));
  assert.equal(world.service.vbds.length, 1);
  // Once more, after the one before has ended.
  await askToClose(world.dom0.store, paths);
  await disk[Symbol.asyncDispose]();
  await world.until(`${paths.backend}/state`, "6");
  while (world.service.vbds.length > 0) await sleep(5);
  await world.makeAgain(XVDA);
  await world.until(`${paths.backend}/state`, "2");
  const again = await world.connect(paths);
  assert.ok((await again.read(0, 4096)).every((byte) => byte === 2));
});

test("directories whose names are no numbers, or numbers written otherwise, are nobody's vbd", async () => {
  await using world = await ServiceWorld.start();
  const { store } = world.dom0;
  const paths = await world.make(XVDA);
  await world.connect(paths);
  for (const name of ["x/51712", "01/51712", "1/051712", "1/0x10", "1/xvda", "1/-1"]) {
    const path = `/local/domain/0/backend/vbd3/${name}`;
    await store.write(`${path}/frontend`, paths.frontend);
    await store.write(`${path}/frontend-id`, String(GUEST));
    await store.write(`${path}/params`, "a.img");
    await store.write(`${path}/state`, "1");
  }
  await world.until(`${(await world.make(XVDB, "a.img")).backend}/state`, "2");
  assert.equal(world.service.vbds.length, 2);
  assert.deepEqual(readdirSync(join(world.folder, "journals")), ["1-51712-0"]);
});

test("a vbd that waits for a lock can be unplugged meanwhile, and holds up no other", async () => {
  await using world = await ServiceWorld.start();
  await world.connect(await world.make(XVDA));
  const paths = await world.make(XVDB);
  const connecting = assert.rejects(world.connect(paths));
  while (!world.notes.some((note) => note.includes("is locked: waiting"))) await sleep(5);
  await takeOffline(world.dom0.store, paths);
  await world.until(`${paths.backend}/state`, "6");
  await connecting;
});

test("a guest that moves waits for the lock that its old self holds, until that has ended", async () => {
  await using world = await ServiceWorld.start();
  const before = await world.connect(await world.make(XVDA));
  const moved = await world.machine.createDomain(2);
  await createDomainNodes(world.dom0.store, 2, "web--incoming");
  const paths = await world.make(XVDA, "a.img", 2);
  await world.until(`${paths.backend}/state`, "2");
  const connecting = world.connect(paths, moved);
  while (!world.notes.some((note) => note.includes("is locked: waiting"))) await sleep(5);
  await before.write(0, Buffer.alloc(4096, 9));
  const old = vbdPaths({
    ...{ frontendDomid: GUEST, backendDomid: 0, vdev: XVDA, readOnly: false },
    ...{ params: "", kind: "vbd3" },
  });
  await removeVbd(world.dom0.store, old);
  const after = await connecting;
  assert.ok((await after.read(0, 4096)).every((byte) => byte === 9));
});
