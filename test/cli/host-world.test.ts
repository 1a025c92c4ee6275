/** attach, list and detach on a Xen host, by the xenstore of a machine that plays it, and a service that plays the daemon. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { attachRequestOf } from "../../src/cli/attach-spec.ts";
import { readDeviceRequest } from "../../src/cli/device-request.ts";
import type { ListedDisk, ListedDomain } from "../../src/cli/disk-list.ts";
import { askHost } from "../../src/cli/host-world.ts";
import type { DiskOptions } from "../../src/cli/options.ts";
import { parseXlDisk } from "../../src/cli/xl-disk.ts";
import { createVbd } from "../../src/xen/toolstack.ts";
import { ServiceWorld } from "../daemon/service-world.ts";

const options: DiskOptions = { engine: "auto", link: "thread", persistent: true, discard: true };

/** A world whose service reads what our own tools, and toolstacks, write. */
async function hostWorld(): Promise<ServiceWorld> {
  const world = await ServiceWorld.start(0, (path) =>
    readDeviceRequest(world.dom0.store, path, { engine: "auto", limits: {} }),
  );
  const socket = join(world.folder, "xenstored.sock");
  await world.machine.xenstore.listen(socket, { domid: 0 });
  process.env.XENSTORED_PATH = socket;
  return world;
}

async function ask<T>(request: string, fields: object): Promise<T> {
  const { signal } = new AbortController();
  return (await askHost(request, fields as Record<string, unknown>, { signal, note() {} })) as T;
}

/** Connects the guest's own frontend once its directory is there. */
async function frontendOf(world: ServiceWorld, vdev: number) {
  const path = `/local/domain/1/device/vbd/${vdev}`;
  while ((await world.dom0.store.read(`${path}/state`)) === undefined) await sleep(5);
  return await world.connect({ frontend: path, backend: "" });
}

test("a disk is attached to a guest by name, shown, and detached by domid", async () => {
  await using world = await hostWorld();
  const words = [`vdev=xvdb,access=w,target=${join(world.folder, "a.img")}`];
  const attaching = ask<ListedDisk>("attach", attachRequestOf("web", parseXlDisk(words), options));
  const disk = await frontendOf(world, 51728);
  const attached = await attaching;
  assert.deepEqual(
    [attached.domain, attached.vdev, attached.state, attached.size, attached.access],
    ["web", "xvdb", "connected", 2 ** 20, "w"],
  );
  // What it is served from is not for the guest to see.
  await assert.rejects(world.guest.store.read(`${attached.backendPath}/vbdkit`), {
    code: "EACCES",
  });
  const domains = await ask<ListedDomain[]>("list", {});
  assert.deepEqual(
    domains.map(({ name, disks }) => [name, disks.length]),
    [
      ["Domain-0", 0],
      ["web", 1],
    ],
  );
  await assert.rejects(ask("detach", { domain: "1", vdev: "xvdc" }), /xvdb/);
  const detaching = ask("detach", { domain: "1", vdev: "xvdb" });
  while ((await world.dom0.store.read(`${attached.backendPath}/online`)) === "1") await sleep(5);
  await disk[Symbol.asyncDispose]();
  await detaching;
  assert.equal(await world.dom0.store.list(attached.backendPath), undefined);
  assert.equal(await world.dom0.store.list(attached.frontendPath), undefined);
});

test("a vdev that is taken, a guest that is none and options of another's frontend are refused", async () => {
  await using world = await hostWorld();
  const { dom0, folder } = world;
  const vbd = { frontendDomid: 1, backendDomid: 0, vdev: 51712, readOnly: false, params: "theirs" };
  const paths = await createVbd(dom0.store, vbd);
  const request = (domain: string, more: Partial<DiskOptions> = {}) => {
    const disk = parseXlDisk([`vdev=xvda,target=${join(folder, "a.img")}`]);
    return ask("attach", attachRequestOf(domain, disk, { ...options, ...more }));
  };
  await assert.rejects(request("web"), /domain 1 has xvda already .*: choose another vdev/);
  await assert.rejects(request("wbe"), /there is no domain "wbe"; did you mean "?web/);
  await assert.rejects(request("web", { link: "worker" }), /the guest has its own frontend/);
  await assert.rejects(ask("detach", { domain: "web", vdev: "xvda" }), /xl block-detach web xvda/);
  assert.equal(await dom0.store.read(`${paths.backend}/state`), "1");
  await assert.rejects(ask("save", {}), /save is not for a Xen host; there are attach,/);
});

test("an image that is missing is said to whoever attaches it, and nothing is left", async () => {
  await using world = await hostWorld();
  const disk = parseXlDisk([`vdev=xvda,target=${join(world.folder, "b.img")}`]);
  await assert.rejects(
    ask("attach", attachRequestOf("web", disk, options)),
    /there is no .*b\.img/,
  );
  assert.deepEqual(await world.dom0.store.list("/local/domain/0/backend/vbd3"), []);
  assert.deepEqual(await world.dom0.store.list("/local/domain/1/device/vbd"), []);
});

test("a disk of xl's with our script, or with backendtype=tap, is served from its params", async () => {
  await using world = await hostWorld();
  const { store } = world.dom0;
  const request = (nodes: Record<string, string>, kind: "vbd" | "vbd3" = "vbd3") =>
    (async () => {
      const path = `/local/domain/0/backend/${kind}/9/51712`;
      await store.remove(path);
      for (const [key, value] of Object.entries({ frontend: "/x", ...nodes })) {
        await store.write(`${path}/${key}`, value);
      }
      return await readDeviceRequest(store, path, { engine: "auto", limits: {} });
    })();
  const script = "/etc/xen/scripts/block-vbdkit";
  const scripted = await request({ script, params: "--filter cow /srv/a.img", mode: "r" }, "vbd");
  assert.deepEqual(
    [scripted?.spec.driver, scripted?.spec.filters[0]?.name, scripted?.readOnly],
    ["file", "cow", true],
  );
  assert.equal((await request({ params: "aio:/srv/a.img", mode: "w" }))?.text, "/srv/a.img");
  assert.equal(await request({ params: "/srv/a.img", mode: "w" }), undefined);
  assert.equal(await request({ params: "aio:/srv/a.img", mode: "w" }, "vbd"), undefined);
  await assert.rejects(request({ params: "aio:a.img", mode: "w" }), /the whole path of a file/);
});
