/** A storage driver domain: a PV guest in which vbdkit daemon serves disks that xl gives to another guest. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";
import { GuestLoad } from "../load.ts";

const fromStorage = (vdev: string, image = `/run/${vdev}.img`) =>
  `vdev=${vdev},access=rw,backend=storage,script=block-vbdkit,target=${image}`;
/** A program starts slowly there. */
const slow = { timeout: 900 };

let lab: Lab;
let storage: Guest;
let web: Guest;

before(async () => {
  lab = await Lab.boot({ steadyTime: true, guestMebibytes: 640 });
  storage = await Guest.create(lab, {
    name: "storage",
    mebibytes: 384,
    disks: ["vdev=xvdy,access=ro,target=/dev/vdb"],
    configuration: "driver_domain = 1",
  });
  await storage.check(
    `set -e
    modprobe -a xen-gntdev xen-evtchn
    mkdir -p /checkout /run/new /run/work
    mount -t squashfs -o ro /dev/xvdy /checkout
    compiled=/checkout/.cache/xen-lab/compile-cache
    mount -t overlay -o lowerdir=$compiled,upperdir=/run/new,workdir=/run/work overlay /compile-cache
    truncate -s 16M /run/xvda.img /run/xvdb.img
    export NODE_COMPILE_CACHE=/compile-cache
    cd /checkout
    setsid vbdkit daemon --kind vbd >/run/daemon.log 2>&1 &
    until grep -q ' serves vbd of domain' /run/daemon.log; do sleep 0.1; done`,
    slow,
  );
  web = await Guest.create(lab, { name: "web", disks: [fromStorage("xvda")] });
  await web.waitFor(/@ready$/m);
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Directories of the guest's disks in the storage domain. */
async function directories(): Promise<string> {
  return await lab.check(
    `xenstore-list /local/domain/${storage.domid}/backend/vbd/${web.domid} | sort`,
  );
}

test("a guest's disk comes from the storage domain", async () => {
  const load = await GuestLoad.start(web, "/dev/xvda");
  await storage.check((await load.end())("/run/xvda.img"), slow);
  assert.equal(await directories(), "51712\n");
});

test("a disk is plugged into the guest and unplugged, twice, while another is written", async () => {
  const neighbour = await GuestLoad.start(web, "/dev/xvda");
  for (let times = 1; times <= 2; times++) {
    await lab.check(`xl block-attach web '${fromStorage("xvdb")}'`);
    await web.check("until [ -b /dev/xvdb ]; do usleep 10000; done", slow);
    const load = await GuestLoad.start(web, "/dev/xvdb");
    const verification = await load.end();
    await lab.check("xl block-detach web xvdb");
    await storage.check(verification("/run/xvdb.img"), slow);
    assert.equal(await directories(), "51712\n");
    assert.equal(await storage.check("ls /run/vbdkit/journals", slow), `${web.domid}-51712-0\n`);
  }
  await neighbour.pass();
  await storage.check((await neighbour.end())("/run/xvda.img"), slow);
});

test("a disk that cannot be served is not attached, and is taken away", async () => {
  const { status } = await lab.run(`xl block-attach web '${fromStorage("xvdc", "/run/none")}'`);
  assert.notEqual(status, 0);
  const directory = `/local/domain/${storage.domid}/backend/vbd/${web.domid}/51744`;
  assert.match(
    await lab.check(`xenstore-read ${directory}/hotplug-error`),
    /there is no \/run\/none/,
  );
  await lab.check("xl block-detach web xvdc");
  assert.equal(await directories(), "51712\n");
});
