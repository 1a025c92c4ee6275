/** The life of guests: suspended, resumed, shut down, crashed, ended, and what others see of it in the xenstore. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Guest, Machine, parseDisk, XenStoreClient } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";

const memory = parseDisk(["memory", "1M"], []);
const page = (value: number): Buffer => Buffer.alloc(4096, value);

async function start(): Promise<Machine> {
  return await Machine.start({ reactor: new Reactor() });
}

/** Writes that are outstanding when it returns, and their outcomes. */
function begin(guest: Guest, count: number): Promise<PromiseSettledResult<void>[]> {
  const [disk] = guest.disks;
  const writes = Array.from({ length: count }, (_, i) => disk!.write(i * 4096, page(i + 1)));
  return Promise.allSettled(writes);
}

test("guests have names of their own, and disks of the same name each", async () => {
  await using machine = await start();
  const one = await machine.createGuest({ name: "one" });
  const two = await machine.createGuest();
  assert.equal(two.name, `guest-${two.domid}`);
  await assert.rejects(machine.createGuest({ name: "one" }), { code: "EEXIST" });
  await assert.rejects(machine.createGuest({ name: "a/b" }), { code: "EINVAL" });
  const a = await machine.attach(memory, { vdev: "xvda", guest: one });
  const b = await machine.attach(memory, { vdev: "xvda", guest: two });
  await assert.rejects(machine.attach(memory, { vdev: "xvda", guest: two }), { code: "EEXIST" });
  await assert.rejects(machine.attach(memory, { vdev: "xvdb", guest: one, link: "process" }), {
    code: "EINVAL",
  });
  await a.write(0, page(1));
  assert.equal((await b.read(0, 1))[0], 0);
  await one.destroy();
  assert.deepEqual([...machine.guests.values()], [two]);
  assert.deepEqual([...machine.disks], [b]);
  const again = await machine.createGuest({ name: "one" });
  assert.notEqual(again.domid, one.domid);
});

for (const cancelled of [true, false]) {
  const how = cancelled ? "cancelled" : "that went through";
  test(`a guest that is resumed after a suspension ${how} has every request answered once`, async () => {
    await using machine = await start();
    const guest = await machine.createGuest();
    const disk = await machine.attach(parseDisk(["memory", "1M", "wdelay=5ms"], ["delay"]), {
      vdev: "xvda",
      guest,
    });
    const before = disk.frontend.counters.freezes.disconnected;
    const outcomes = begin(guest, 200);
    await disk.read(0, 512);
    await guest.suspend();
    assert.equal(guest.state, "suspend");
    const { responses } = disk.frontend.counters;
    const late = disk.write(255 * 4096, page(99));
    // The backend answers what it has, and a domain that does not run does not see it.
    await sleep(20);
    assert.equal(disk.frontend.counters.responses, responses);
    await assert.rejects(guest.suspend(), { code: "EINVAL" });
    await guest.resume({ cancelled });
    await late;
    for (const outcome of await outcomes) assert.equal(outcome.status, "fulfilled");
    for (let i = 0; i < 200; i++) assert.equal((await disk.read(i * 4096, 1))[0], (i + 1) & 255);
    assert.equal(disk.frontend.counters.freezes.disconnected, cancelled ? before : before + 1);
    await assert.rejects(guest.resume(), { code: "EINVAL" });
  });
}

test("@releaseDomain tells of a shutdown once, and again after it was resumed, and of the end", async () => {
  await using machine = await start();
  await using store = await XenStoreClient.connect(machine.xenstoreSocket);
  let told = 0;
  await store.watch("@releaseDomain", () => void told++);
  const heard = async (): Promise<number> => {
    // An answer comes after the events before it.
    await store.read("/");
    return told;
  };
  const start0 = await heard();
  const guest = await machine.createGuest();
  await guest.suspend();
  machine.embedded.shutdownDomain(guest.domid, "crash");
  assert.equal(machine.embedded.shutdownReason(guest.domid), "suspend");
  assert.equal(await heard(), start0 + 1);
  await guest.resume();
  assert.equal(machine.embedded.shutdownReason(guest.domid), undefined);
  await guest.crash();
  assert.equal(machine.embedded.shutdownReason(guest.domid), "crash");
  assert.equal(await heard(), start0 + 2);
  await guest.destroy();
  assert.equal(await heard(), start0 + 3);
  assert.throws(() => machine.embedded.shutdownReason(guest.domid), { code: "ENOENT" });
  assert.throws(() => machine.embedded.shutdownDomain(guest.domid, "crash"), { code: "ENOENT" });
});

test("a guest that crashes fails its own requests and no other's, and is there until it is destroyed", async () => {
  await using machine = await start();
  const guest = await machine.createGuest();
  const other = await machine.createGuest();
  await machine.attach(memory, { vdev: "xvda", guest });
  const good = await machine.attach(memory, { vdev: "xvda", guest: other });
  const outcomes = begin(guest, 100);
  await guest.crash();
  for (const outcome of await outcomes) {
    assert.ok(outcome.status === "fulfilled" || outcome.reason.code === "EIO");
  }
  assert.equal(guest.state, "crash");
  await assert.rejects(guest.resume(), { code: "EINVAL" });
  await assert.rejects(machine.attach(memory, { vdev: "xvdb", guest }), { code: "EINVAL" });
  assert.ok(machine.guests.has(guest.domid));
  await good.write(0, page(5));
  await guest.destroy();
  await guest.destroy();
  assert.equal(guest.state, "dead");
  assert.equal(machine.disks.size, 1);
  await using store = await XenStoreClient.connect(machine.xenstoreSocket);
  assert.equal(await store.list(`/local/domain/${guest.domid}`), undefined);
  assert.deepEqual(await store.list("/local/domain/0/backend/vbd"), [String(other.domid)]);
  assert.equal((await good.read(0, 1))[0], 5);
});

test("a guest that shuts down closes its disks first, with all that was written", async () => {
  await using machine = await start();
  const guest = await machine.createGuest();
  await machine.attach(memory, { vdev: "xvda", guest, link: "worker" });
  const outcomes = begin(guest, 100);
  await guest.shutdown("poweroff");
  for (const outcome of await outcomes) assert.equal(outcome.status, "fulfilled");
  assert.deepEqual([guest.state, guest.disks.size], ["poweroff", 0]);
  await guest.destroy();
});

test("a suspended guest can be destroyed, and its machine ended, without waiting for anybody", async () => {
  const machine = await start();
  for (const end of ["destroy", "machine"]) {
    const guest = await machine.createGuest();
    await machine.attach(memory, { vdev: "xvda", guest });
    const outcomes = begin(guest, 100);
    await guest.suspend();
    await (end === "destroy" ? guest.destroy() : machine[Symbol.asyncDispose]());
    assert.ok((await outcomes).length === 100);
  }
});
