/** Guests of other kinds than guests.test.ts has: PVH, a root on a disk of their own, a kernel that GRUB finds there. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Guest } from "../guest.ts";
import { makeGuestDisk } from "../guest-disk.ts";
import { Lab } from "../lab.ts";

const image = "/tmp/guest.img";
const disks = [`vdev=xvda,access=rw,target=${image}`];

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
  await lab.check("modprobe -a loop xen-blkback");
  await makeGuestDisk(lab, image, "/dev/xvda");
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("a PVH guest runs commands, with memory as its root", async () => {
  await using guest = await Guest.create(lab, { name: "pvh", kind: "pvh", root: "memory" });
  assert.equal(await guest.check("cat /sys/hypervisor/guest_type"), "PVH\n");
});

test("a PV guest has its root on its disk, and GRUB boots the next from it", async () => {
  {
    await using guest = await Guest.create(lab, { name: "disk", disks, root: "/dev/xvda" });
    assert.match(await guest.check("grep ' / ' /proc/mounts"), /^\/dev\/xvda \/ ext4 rw/m);
    await guest.check("echo written by a guest >/kept; sync");
  }
  await using guest = await Guest.create(lab, { name: "grub", kind: "grub", disks });
  assert.equal(await guest.check("cat /kept"), "written by a guest\n");
  assert.match(await guest.check("cat /proc/cmdline"), /lab\.root=\/dev\/xvda/);
  assert.match(guest.console, /Reading \(xen\/xvda\)\/boot\/grub\/grub\.cfg/);
});
