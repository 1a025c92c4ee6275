/** A disk of ours in a guest: on doubles of a host's devices, with our own frontend for the guest's kernel. */
import assert from "node:assert/strict";
import test from "node:test";
import { BlockFrontend } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { HostVbd } from "../../src/machine/index.ts";
import { Disk } from "../../src/store/disk.ts";
import { systemClock } from "../../src/util/clock.ts";
import { HostDomain } from "../../src/xen/host/domain.ts";
import { XenbusState } from "../../src/xen/xenbus.ts";
import { XenStoreClient, XenStoreDaemon } from "../../src/xen/xenstore/index.ts";
import { DeviceDouble } from "../xen/host/double.ts";

const GUEST = 7;
const memory = { driver: "memory", parameters: { size: "4M" }, filters: [] };

class Host implements AsyncDisposable {
  readonly devices: DeviceDouble;
  readonly dom0: HostDomain;
  readonly guest: HostDomain;
  readonly #daemon = new XenStoreDaemon();

  /** Pages that all may grant. */
  constructor(limit?: number) {
    this.devices = new DeviceDouble(limit);
    const reactor = new Reactor();
    const domain = (domid: number): HostDomain => {
      const store = new XenStoreClient(this.#daemon.connect(domid));
      return new HostDomain(domid, store, reactor, this.devices.of(domid));
    };
    this.dom0 = domain(0);
    this.guest = domain(GUEST);
  }

  static async start(limit?: number): Promise<Host> {
    const host = new Host(limit);
    const { store } = host.dom0;
    await store.write(`/local/domain/${GUEST}/name`, "web");
    return host;
  }

  attach(options: Partial<Parameters<typeof HostVbd.attach>[2]> = {}): Promise<HostVbd> {
    return HostVbd.attach(this.dom0, memory, { domid: GUEST, vdev: "xvda", ...options });
  }

  async connect(vbd: HostVbd): Promise<[BlockFrontend, Disk]> {
    const frontend = await BlockFrontend.connect(this.guest, vbd.paths.frontend, {
      clock: systemClock,
      limits: { maxPoolPages: 352 },
    });
    return [frontend, new Disk(frontend, this.guest.reactor)];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.guest[Symbol.asyncDispose]();
    await this.dom0[Symbol.asyncDispose]();
    await this.#daemon[Symbol.asyncDispose]();
    this.devices[Symbol.dispose]();
  }
}

const whole = Uint8Array.from({ length: 1 << 20 }, (_, i) => (i * 31) >> 3);

const ways = {
  "persistent grants": { persistent: true, grants: "auto" },
  "grants mapped for each request": { persistent: false, grants: "map" },
  "grants copied for each request": { persistent: false, grants: "auto" },
} as const;
for (const [how, backend] of Object.entries(ways)) {
  test(`a guest reads what it wrote, with ${how}, and leaves no page mapped`, async () => {
    const { persistent, grants } = backend;
    await using host = await Host.start();
    await using vbd = await host.attach({ backend });
    const [frontend, disk] = await host.connect(vbd);
    assert.equal(frontend.negotiated.persistent, persistent);
    await disk.write(4096, whole);
    await disk.flush();
    assert.deepEqual(Buffer.from(await disk.read(4096, whole.length)), Buffer.from(whole));
    const { counters } = host.dom0.grants;
    if (persistent) assert.ok(counters.mapped > 1 && counters.unmaps === 0);
    else assert.deepEqual([counters.mapped, counters.unmaps >= 512], [4, grants === "map"]);
    assert.equal(counters.copies >= 512, !persistent && grants === "auto");
    await disk[Symbol.asyncDispose]();
    assert.deepEqual([counters.mapped, host.devices.listed, host.devices.granted], [0, 0, 0]);
  });
}

test("a frontend with few pages to grant does all it is asked, a little at a time", async () => {
  await using host = await Host.start(72);
  await using vbd = await host.attach();
  const frontend = await BlockFrontend.connect(host.guest, vbd.paths.frontend, {
    clock: systemClock,
  });
  const disk = new Disk(frontend, host.guest.reactor);
  await Promise.all(
    Array.from({ length: 16 }, (_, i) => disk.write(i * 65536, whole.subarray(0, 65536))),
  );
  assert.deepEqual(
    Buffer.from(await disk.read(15 * 65536, 65536)),
    Buffer.from(whole.subarray(0, 65536)),
  );
  assert.ok(host.devices.granted <= 72);
  await disk[Symbol.asyncDispose]();
});

test("a disk that is detached waits for the guest to close it, and leaves no nodes", async () => {
  await using host = await Host.start();
  const vbd = await host.attach();
  const [frontend] = await host.connect(vbd);
  const { store } = host.dom0;
  using held = frontend.hold();
  const detached = vbd.detach();
  while ((await store.read(`${vbd.paths.backend}/state`)) !== String(XenbusState.closing));
  assert.equal(frontend.state, "connected");
  held[Symbol.dispose]();
  await detached;
  assert.equal(await store.list(vbd.paths.frontend), undefined);
  assert.equal(await store.list(`/local/domain/0/backend/vbd3/${GUEST}`), undefined);
  await frontend[Symbol.asyncDispose]();
});

test("a disk that nobody connected to, or that is forced, goes at once", async () => {
  await using host = await Host.start();
  await (await host.attach())[Symbol.asyncDispose]();
  const vbd = await host.attach();
  const [frontend] = await host.connect(vbd);
  using _held = frontend.hold();
  await vbd.detach({ force: true });
  assert.equal(await host.dom0.store.list(vbd.paths.backend), undefined);
  await frontend[Symbol.asyncDispose]();
});

test("a guest that dies ends its disk", async () => {
  await using host = await Host.start();
  await using vbd = await host.attach();
  const [frontend] = await host.connect(vbd);
  await frontend.abandon(new Error("the guest died"));
  await host.dom0.store.remove(`/local/domain/${GUEST}`);
  await vbd.ended;
  assert.equal(host.dom0.grants.counters.mapped, 0);
});

test("no disk goes to a domain that is not there, or in the place of another", async () => {
  await using host = await Host.start();
  await assert.rejects(host.attach({ domid: 8 }), { code: "ESRCH", message: /no domain 8/ });
  assert.equal(await host.dom0.store.list("/local/domain/8"), undefined);
  await using vbd = await host.attach();
  const taken = { code: "EEXIST", message: /domain 7 has xvd[ab] already .*another vdev/ };
  await assert.rejects(host.attach(), taken);
  await assert.rejects(host.attach({ vdev: "disk1" }), { code: "EINVAL" });
  // Whoever has it: a toolstack that only begins, a frontend where no kernel looks, a backend that was left.
  for (const path of [
    "/libxl/7/device/vbd/51728",
    "/local/domain/7/device/vbdkit/51728",
    "/local/domain/0/backend/vbd3/7/51728",
  ]) {
    await host.dom0.store.write(`${path}/state`, "1");
    await assert.rejects(host.attach({ vdev: "xvdb" }), taken);
    assert.equal(await host.dom0.store.read(`${path}/state`), "1");
    await host.dom0.store.remove(path);
  }
  assert.equal(vbd.vdev, "xvda");
});
