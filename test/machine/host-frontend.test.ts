/** A disk of somebody else's backend: devices of a toolstack and devices that we make, served by a daemon of vbds. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import { foreignBackend } from "../../src/machine/foreign-backend.ts";
import { HostFrontend, type NewHostVbd } from "../../src/machine/index.ts";
import { Disk } from "../../src/store/disk.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { HostDomain } from "../../src/xen/host/domain.ts";
import { XenStoreClient, XenStoreDaemon } from "../../src/xen/xenstore/index.ts";
import { GUEST, ServiceWorld } from "../daemon/service-world.ts";
import { temporaryFolder } from "../support/vbdkit.ts";
import { DeviceDouble } from "../xen/host/double.ts";

/** A daemon in domain 0 serves what a toolstack writes as backendtype=tap does. */
async function startWorld(): Promise<ServiceWorld> {
  const world: ServiceWorld = await ServiceWorld.start(0, async (path) => {
    const params = await world.dom0.store.read(`${path}/params`);
    return world.requestOf(params?.replace(/^aio:/, ""));
  });
  return world;
}

const tap: NewHostVbd = { vdev: "xvdb", backendType: "tap", target: "a.img" };
const data = Buffer.from("as it was written".padEnd(4096));

/** What a domain has granted and mapped when its disk has gone. */
function held({ grants: { counters } }: Domain): readonly number[] {
  return [counters.granted, counters.mapped];
}

test("a device that a toolstack made is connected to, let go of, and connected to again", async () => {
  await using world = await startWorld();
  const paths = await world.make(51728, "aio:a.img");
  for (const name of ["xvdb", "device/vbd/51728", paths.frontend]) {
    const device = await HostFrontend.open(world.guest, name);
    assert.deepEqual(device.paths, paths);
    const disk = new Disk(device.store, world.guest.reactor);
    await disk.write(0, data);
    assert.deepEqual(Buffer.from(await disk.read(0, 4096)), data);
    await device[Symbol.asyncDispose]();
    assert.equal(await world.dom0.store.read(`${paths.frontend}/state`), "6");
    assert.deepEqual(held(world.guest), [0, 0]);
  }
});

test("a device that somebody has is not taken from him, unless asked for", async () => {
  await using world = await startWorld();
  const paths = await world.make(51728, "aio:a.img");
  const first = await HostFrontend.open(world.guest, "xvdb");
  await assert.rejects(HostFrontend.open(world.guest, "xvdb"), {
    code: "EBUSY",
    message: /51728 is Connected: .*another program/,
  });
  await first.store.abandon(new Error("killed"));
  assert.equal(await world.dom0.store.read(`${paths.frontend}/state`), "4");
  await using second = await HostFrontend.open(world.guest, "xvdb", { force: true });
  assert.equal(second.store.state, "connected");
});

test("a device that is not there is told from those that are", async () => {
  await using world = await startWorld();
  const missing = { code: "ENOENT", message: /no device xvdb; it has none/ };
  await assert.rejects(HostFrontend.open(world.guest, "xvdb"), missing);
  await world.make(51712, "aio:a.img");
  await assert.rejects(HostFrontend.open(world.guest, "xvdb"), { message: /; there is xvda/ });
  await assert.rejects(HostFrontend.open(world.guest, "device/vbd/1"), { code: "ENOENT" });
});

test("a device that domain 0 makes lies where no kernel looks, and is gone with its user", async () => {
  await using world = await startWorld();
  const { dom0 } = world;
  const device = await HostFrontend.make(dom0, tap);
  assert.deepEqual(device.paths, {
    frontend: "/local/domain/0/device/vbdkit/51728",
    backend: "/local/domain/0/backend/vbd3/0/51728",
  });
  const { frontend, backend } = device.paths;
  await assert.rejects(HostFrontend.make(dom0, tap), {
    code: "EEXIST",
    message: new RegExp(`domain 0 has xvdb already \\(${frontend}, ${backend}\\)`),
  });
  const disk = new Disk(device.store, dom0.reactor);
  await disk.write(0, data);
  await disk.flush();
  assert.deepEqual(Buffer.from(await disk.read(0, 4096)), data);
  await device[Symbol.asyncDispose]();
  assert.deepEqual(held(dom0), [0, 0]);
  for (const path of Object.values(device.paths)) {
    assert.equal(await dom0.store.list(path), undefined);
  }
});

test("a device that could not be had leaves nothing, whatever stood against it", async () => {
  await using world = await startWorld();
  const { dom0, guest } = world;
  const abort = new AbortController();
  const waits = HostFrontend.make(
    dom0,
    { ...tap, target: "theirs" },
    { signal: abort.signal },
  ).catch((error: unknown) => error);
  while ((await dom0.store.list("/local/domain/0/device/vbdkit")) === undefined);
  const why = new Error("no longer wanted");
  abort.abort(why);
  assert.equal(await waits, why);
  await assert.rejects(HostFrontend.make(dom0, { ...tap, target: "bad" }), /bad: is no disk/);
  await assert.rejects(HostFrontend.make(dom0, { ...tap, target: "nowhere.img" }), /nowhere\.img/);
  await assert.rejects(HostFrontend.make(guest, { ...tap, backendDomid: 0 }), {
    code: "EACCES",
    message: /only the toolstack's domain/,
  });
  await assert.rejects(HostFrontend.make(dom0, { ...tap, vdev: "disk" }), { code: "EINVAL" });
  for (const path of [`device/vbdkit/51728`, "backend/vbd3/0/51728"]) {
    assert.equal(await dom0.store.list(`/local/domain/0/${path}`), undefined);
  }
  assert.equal(await dom0.store.list(`/local/domain/${GUEST}/device/vbdkit`), undefined);
});

test("a host that has no pages left to grant says which limit that is", async () => {
  await using ends = new AsyncDisposableStack();
  const daemon = ends.use(new XenStoreDaemon());
  const devices = ends.use(new DeviceDouble(20));
  const store = new XenStoreClient(daemon.connect(0));
  const domain = ends.use(new HostDomain(0, store, new Reactor(), devices.of(0)));
  const backend = "/local/domain/0/backend/vbd3/0/51728";
  // It stands for a backend that waits for a frontend.
  const watch = await store.watch(`${backend}/state`, (path) => {
    void store.read(path).then((state) => (state === "1" ? store.write(path, "2") : undefined));
  });
  ends.defer(() => watch[Symbol.asyncDispose]());
  await assert.rejects(HostFrontend.make(domain, tap), {
    code: "ENOMEM",
    message: /\/sys\/module\/xen_gntalloc\/parameters\/limit/,
  });
  assert.equal(devices.granted, 0);
});

test("a disk goes to the backend that xl would choose, with the nodes that libxl writes", async () => {
  await using folder = await temporaryFolder();
  const file = folder.file("disk.img");
  await writeFile(file, "");
  const of = (disk: Partial<NewHostVbd>, local = true) =>
    foreignBackend({ target: file, ...disk }, local);
  assert.deepEqual(of({}), {
    kind: "qdisk",
    params: `aio:${file}`,
    backendNodes: { type: "qdisk" },
  });
  assert.equal(of({ format: "vhd" }).params, `vpc:${file}`);
  assert.equal(of({ format: "qcow2" }).params, `qcow2:${file}`);
  const script = { script: "/etc/xen/scripts/block" };
  assert.deepEqual(of({ target: "/dev/vg/data" }, false).backendNodes, script);
  assert.deepEqual(of({ target: "iqn.x", script: "block-iscsi" }).backendNodes, {
    script: "/etc/xen/scripts/block-iscsi",
  });
  assert.equal(of({ backendType: "qdisk" }, false).kind, "qdisk");
  assert.throws(() => of({ backendType: "phy" }), { message: /is a file, .*backendtype=qdisk/ });
  assert.throws(() => of({ backendType: "tap", format: "qcow2" }), { code: "EINVAL" });
  assert.throws(() => of({ target: `${file}.none` }), { code: "ENOENT" });
});
