/** Guests by name: what a toolstack writes of them, and which disks they can have. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { XenStoreClient } from "../../src/xen/xenstore/index.ts";

const memory = parseDisk(["memory", "1M"], []);

test("a guest has its name where tools look for it, by domid and by vm", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const { domid } = await machine.createGuest({ name: "web" });
  await using store = await XenStoreClient.connect(machine.xenstoreSocket);
  assert.equal(await store.read(`/local/domain/${domid}/name`), "web");
  const vm = await store.read(`/local/domain/${domid}/vm`);
  assert.match(vm!, /^\/vm\/[0-9a-f-]{36}$/);
  assert.equal(await store.read(`${vm}/name`), "web");
  assert.equal(`/vm/${await store.read(`${vm}/uuid`)}`, vm);
});

test("a name is given once", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const { domid } = await machine.createGuest({ name: "web" });
  await assert.rejects(machine.createGuest({ name: "web" }), { code: "EEXIST" });
  assert.deepEqual([...machine.guests.keys()], [domid]);
});

test("each guest has its own xvda, whichever way its backend lives", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const links = ["thread", "worker", "process"] as const;
  const guests = await Promise.all(
    links.map((link) => machine.createGuest({ name: `of-${link}`, shared: link === "process" })),
  );
  const disks = await Promise.all(
    links.map((link, index) =>
      machine.attach(memory, { guest: guests[index]!, vdev: "xvda", link }),
    ),
  );
  for (const [index, disk] of disks.entries()) await disk.write(0, Buffer.alloc(4096, index + 1));
  for (const [index, disk] of disks.entries()) {
    assert.equal((await disk.read(0, 1))[0], index + 1);
    const { frontendPath } = await disk.information();
    assert.ok(frontendPath.startsWith(`/local/domain/${guests[index]!.domid}/`));
  }
});

test("a guest whose memory stays here is refused to another process, in words", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const guest = await machine.createGuest({ name: "private" });
  const attached = machine.attach(memory, { guest, vdev: "xvda", link: "process" });
  await assert.rejects(attached, { code: "EINVAL", message: /^private is not shared/ });
  await using disk = await machine.attach(memory, { guest, vdev: "xvda", link: "worker" });
  assert.equal(disk.size, 2 ** 20);
});

test("a toolstack's words about a device reach the guest: a read-only cdrom in vbd3", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const options = { vdev: "hdc", readOnly: true, cdrom: true, removable: true } as const;
  await using disk = await machine.attach(memory, { ...options, kind: "vbd3" });
  const { cdrom, removable, readOnly } = disk.frontend.device;
  assert.deepEqual([cdrom, removable, readOnly], [true, true, true]);
  assert.match((await disk.information()).backendPath, /\/backend\/vbd3\/1\/5632$/);
});
