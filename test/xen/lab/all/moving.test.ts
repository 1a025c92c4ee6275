/** A guest that xl saves, restores and migrates under load, with all of its disks served by vbdkit daemon. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon } from "../daemon.ts";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";
import { GuestLoad } from "../load.ts";

const image = "/tmp/a.img";
const saved = "/tmp/web.save";
const script = "script=block-vbdkit";

let lab: Lab;
let guest: Guest;

before(async () => {
  lab = await Lab.boot({ steadyTime: true });
  await lab.check(`truncate -s 16M ${image}`);
  await LabDaemon.start(lab, "--kind vbd");
  guest = await Guest.create(lab, {
    name: "web",
    disks: [`vdev=xvda,access=rw,${script},target=${image}`],
    rootDisk: `vdev=xvdz,access=ro,${script},target=/dev/vda`,
  });
  // Linux does not hear that it is to suspend before it has begun.
  await guest.waitFor(/@ready$/m);
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** What the guest writes while it is moved is all there: to its own eyes, and in the image. */
async function underLoad(move: () => Promise<void>): Promise<void> {
  const load = await GuestLoad.start(guest, "/dev/xvda");
  await move();
  await load.pass();
  const verification = await load.end();
  await lab.check(verification(image));
  // Each domain that it was has left nothing.
  assert.equal(await lab.check("xenstore-list /local/domain/0/backend/vbd"), `${guest.domid}\n`);
  assert.equal(
    await lab.check("ls /run/vbdkit/journals"),
    ["xvdz", "xvda"].map((vdev) => `${guest.domid}-${handles[vdev]}-0\n`).join(""),
  );
  assert.ok(await isLocked());
}

const handles: Readonly<Record<string, number>> = { xvda: 51712, xvdz: 268441856 };

async function isLocked(): Promise<boolean> {
  const { status } = await lab.run(`grep -q ":$(stat -c %i ${image}) " /proc/locks`);
  return status === 0;
}

test("a guest is saved and restored under load: nothing is lost, and the image is free between", async () => {
  await underLoad(async () => {
    await guest.save(saved);
    assert.ok(!(await isLocked()));
    assert.equal(await lab.check("ls /run/vbdkit/journals"), "");
    await guest.restore(saved);
    await lab.check(`rm ${saved}`);
  });
});

test("a guest goes on after a checkpoint that was made of it under load", async () => {
  await underLoad(async () => {
    await lab.check(`xl save -c web ${saved} && rm ${saved}`);
  });
});

test("a guest is migrated under load, and nothing is lost", async () => {
  await underLoad(() => guest.migrate());
});
