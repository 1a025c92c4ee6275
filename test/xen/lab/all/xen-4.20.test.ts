/** Xen 4.20, whose libxl makes disks of backends that are not its kernel's: backendtype=tap with a script. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon } from "../daemon.ts";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";
import { GuestLoad } from "../load.ts";

const disk = (vdev: string) =>
  `format=raw,backendtype=tap,script=block-vbdkit,vdev=${vdev},access=rw,target=/tmp/${vdev}.img`;

let lab: Lab;
let guest: Guest;
before(async () => {
  lab = await Lab.boot({ version: "4.20", steadyTime: true });
  assert.match(await lab.check("xl info"), /^xen_version\s*: 4\.20\./m);
  await LabDaemon.start(lab);
  await lab.check("truncate -s 16M /tmp/xvda.img /tmp/xvdb.img");
  guest = await Guest.create(lab, { name: "web", disks: [disk("xvda")] });
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

async function verified(vdev: string): Promise<void> {
  const load = await GuestLoad.start(guest, `/dev/${vdev}`);
  await lab.check((await load.end())(`/tmp/${vdev}.img`));
}

const disks = async () =>
  await lab.check(`xenstore-list /local/domain/0/backend/vbd3/${guest.domid}`);

test("a guest that xl makes has its disk from vbdkit, beside one of the kernel's", async () => {
  await verified("xvda");
  assert.equal(await disks(), "51712\n");
});

test("xl plugs a disk in and unplugs it", async () => {
  await lab.check(`xl block-attach web '${disk("xvdb")}'`);
  await guest.check("until [ -b /dev/xvdb ]; do usleep 10000; done");
  await verified("xvdb");
  await lab.check("xl block-detach web xvdb");
  assert.equal(await disks(), "51712\n");
});
