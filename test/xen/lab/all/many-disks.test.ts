/** Two guests with four disks each on one vbdkit daemon. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon } from "../daemon.ts";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";
import { GuestLoad } from "../load.ts";

const names = ["a", "b"] as const;
const vdevs = ["xvda", "xvdb", "xvdc", "xvdd"] as const;
const script = "script=block-vbdkit";
const image = (guest: string, vdev: string) => `/tmp/${guest}-${vdev}.img`;

let lab: Lab;
const guests = new Map<string, Guest>();

before(async () => {
  lab = await Lab.boot({ steadyTime: true });
  await LabDaemon.start(lab, "--kind vbd");
  for (const name of names) {
    const images = vdevs.map((vdev) => image(name, vdev));
    await lab.check(`truncate -s 16M ${images.join(" ")}`);
    const guest = await Guest.create(lab, {
      name,
      disks: vdevs.map((vdev) => `vdev=${vdev},access=rw,${script},target=${image(name, vdev)}`),
      rootDisk: `vdev=xvdz,access=ro,${script},target=/dev/vda`,
    });
    await guest.waitFor(/@ready$/m);
    guests.set(name, guest);
  }
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("eight disks of two guests are written at once, and a guest that is destroyed disturbs no other", async () => {
  const start = async (name: string) =>
    await Promise.all(
      vdevs.map(async (vdev) => await GuestLoad.start(guests.get(name)!, `/dev/${vdev}`)),
    );
  const [loads] = await Promise.all([start("a"), start("b")]);
  await lab.check("xl destroy b");
  await Promise.all(loads.map(async (load) => await load.pass()));
  for (const [index, load] of loads.entries()) {
    await lab.check((await load.end())(image("a", vdevs[index]!)));
  }
  const { domid } = guests.get("a")!;
  assert.equal(await lab.check("xenstore-list /local/domain/0/backend/vbd"), `${domid}\n`);
  const journals = (await lab.check("ls /run/vbdkit/journals")).trim().split("\n");
  assert.deepEqual(new Set(journals.map((name) => name.split("-")[0])), new Set([String(domid)]));
});
