import assert from "node:assert/strict";
import test from "node:test";
import { Reactor } from "../../../src/io/reactor.ts";
import { domainSuite } from "../../../src/testing/domain-suite.ts";
import { GrantMapBatch, GrantStatus } from "../../../src/xen/domain.ts";
import { HostDomain } from "../../../src/xen/host/domain.ts";
import { XenStoreClient, XenStoreDaemon } from "../../../src/xen/xenstore/index.ts";
import { DeviceDouble } from "./double.ts";

interface Pair extends AsyncDisposable {
  readonly front: HostDomain;
  readonly back: HostDomain;
  readonly devices: DeviceDouble;
  readonly path: string;
}

async function open(limit?: number): Promise<Pair> {
  const ends = new AsyncDisposableStack();
  const devices = ends.use(new DeviceDouble(limit));
  const daemon = ends.use(new XenStoreDaemon());
  const reactor = new Reactor();
  const domain = (domid: number): HostDomain => {
    const store = new XenStoreClient(daemon.connect(0));
    return ends.use(new HostDomain(domid, store, reactor, devices.of(domid)));
  };
  const front = domain(5);
  const back = domain(0);
  return {
    front,
    back,
    devices,
    path: "/tool/test",
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

domainSuite("domains of a host", { open: () => open() });

test("a device is opened when it is first needed, and none that is not", async () => {
  await using pair = await open();
  const { front, back, devices } = pair;
  assert.deepEqual(devices.opened, []);
  using pages = front.grants.allocate(1)!;
  assert.deepEqual(devices.opened, ["gntalloc"]);
  pages.grant(0, back.id, false);
  using mapping = back.grants.mapContiguous(front.id, [...pages.references], false) as Disposable;
  assert.deepEqual(devices.opened, ["gntalloc", "gntdev"]);
  using _port = back.events.allocateUnbound(front.id);
  assert.deepEqual(devices.opened, ["gntalloc", "gntdev", "evtchn"]);
  assert.ok(mapping);
});

test("gntdev's list is empty when everything was unmapped, whatever failed before", async () => {
  await using pair = await open();
  const { front, back, devices } = pair;
  using pages = front.grants.allocate(8)!;
  for (let i = 0; i < 8; i++) pages.grant(i, back.id, i === 6);
  const batch = new GrantMapBatch(9);
  batch.count = 9;
  batch.together = true;
  batch.references.set([...pages.references, 4000]);
  batch.readOnly[2] = 1;
  back.grants.map(front.id, batch);
  assert.deepEqual(
    [...batch.statuses],
    [0, 0, 0, 0, 0, 0, GrantStatus.generalError, 0, GrantStatus.generalError],
  );
  assert.equal(devices.listed, 7);
  for (let i = 0; i < 9; i++) if (batch.statuses[i] === 0) back.grants.unmap(batch.handles[i]!);
  assert.equal(devices.listed, 0);
});

test("pages of one mapping stay until the last of them is given back, those mapped apart do not", async () => {
  await using pair = await open();
  const { front, back, devices } = pair;
  using pages = front.grants.allocate(3)!;
  for (let i = 0; i < 3; i++) pages.grant(i, back.id, false);
  const batch = new GrantMapBatch(3);
  batch.count = 3;
  batch.references.set(pages.references);
  for (const [together, listed] of [
    [true, [3, 3, 0]],
    [false, [2, 1, 0]],
  ] as const) {
    batch.together = together;
    back.grants.map(front.id, batch);
    const left = [2, 0, 1].map((i) => {
      back.grants.unmap(batch.handles[i]!);
      return devices.listed;
    });
    assert.deepEqual(left, listed);
  }
});

test("no more pages are allocated than gntalloc may grant, and none is lost to those that ended", async () => {
  await using pair = await open(10);
  const { front, back, devices } = pair;
  for (let round = 0; round < 5; round++) {
    using first = front.grants.allocate(7)!;
    assert.equal(front.grants.allocate(4), undefined);
    using second = front.grants.allocate(3)!;
    for (let i = 0; i < 7; i++) assert.ok(first.grant(i, back.id, false));
    for (let i = 0; i < 3; i++) assert.ok(second.grant(i, back.id, false));
    assert.equal(devices.granted, 10);
  }
  assert.equal(devices.granted, 0);
});

test("a page that another process left no entry for waits until there is one", async () => {
  await using pair = await open(2);
  const { front, back } = pair;
  const greedy = new HostDomain(5, back.store, front.reactor, pair.devices.of(5));
  const theirs = greedy.grants.allocate(2)!;
  using ours = front.grants.allocate(2)!;
  assert.ok(theirs.grant(0, back.id, false) && theirs.grant(1, back.id, false));
  assert.equal(ours.grant(0, back.id, false), false);
  assert.equal(ours.references[0], 0);
  const free = Promise.withResolvers<void>();
  front.grants.whenFree(1, free.resolve);
  theirs[Symbol.dispose]();
  await free.promise;
  assert.ok(ours.grant(0, back.id, false));
  greedy.grants[Symbol.dispose]();
});

test("a domain that ends leaves no grant, mapping or port behind", async () => {
  const pair = await open();
  const { front, back, devices } = pair;
  const pages = front.grants.allocate(4)!;
  for (let i = 0; i < 4; i++) pages.grant(i, back.id, false);
  back.grants.mapContiguous(front.id, [...pages.references], false);
  const { port } = front.events.allocateUnbound(back.id);
  back.events.bindInterdomain(front.id, port);
  await front[Symbol.asyncDispose]();
  await back[Symbol.asyncDispose]();
  assert.deepEqual([devices.granted, devices.listed, devices.openPorts], [0, 0, 0]);
  assert.throws(() => front.events.allocateUnbound(0), { code: "EBADF" });
  await pair[Symbol.asyncDispose]();
});
