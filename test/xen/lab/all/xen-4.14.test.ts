/** Xen 4.14: vbdkit attach needs no toolstack that knows of it. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon, whatIsLeft } from "../daemon.ts";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";
import { GuestLoad } from "../load.ts";

const image = "/tmp/a.img";

let lab: Lab;
let guest: Guest;
before(async () => {
  lab = await Lab.boot({ version: "4.14", steadyTime: true });
  assert.match(await lab.check("xl info"), /^xen_version\s*: 4\.14\./m);
  await LabDaemon.start(lab);
  await lab.check(`truncate -s 16M ${image}`);
  guest = await Guest.create(lab, { name: "web" });
  await guest.waitFor(/@ready$/m);
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("a disk that vbdkit attaches to a guest keeps what the guest writes, and goes without a trace", async () => {
  await lab.check(`vbdkit attach web 'vdev=xvdb,target=${image}'`);
  await guest.check("until [ -b /dev/xvdb ]; do usleep 10000; done");
  const load = await GuestLoad.start(guest, "/dev/xvdb");
  await lab.check((await load.end())(image));
  await lab.check("vbdkit detach web xvdb");
  assert.equal(
    await whatIsLeft(lab, "ls /run/vbdkit/journals; xenstore-ls /local/domain/0/backend/vbd3"),
    "",
  );
});
