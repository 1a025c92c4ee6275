/** Who plays foul has only itself to harm: on a real Xen, the published suites, and vbdkit daemon between a guest and a foe. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Guest } from "../guest.ts";
import { Lab, type LabProcess } from "../lab.ts";

const node = "exec node --conditions=vbdkit-source";
const slow = { timeout: 300 };

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
  // The scripted peers grant pages as they please.
  await lab.check(
    "modprobe -a xen-gntalloc xen-gntdev xen-evtchn; echo 16384 >/sys/module/xen_gntalloc/parameters/limit",
  );
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Resolves when it has printed so. */
async function untilSaid(process: LabProcess, words: RegExp): Promise<void> {
  for (let tries = 0; !words.test(process.output.stdout); tries++) {
    assert.ok(tries < 3000, `it says only: ${process.output.stdout}${process.output.stderr}`);
    await sleep(100);
  }
}

test("dom0 passes the suites of backends and frontends", async () => {
  const { status, stdout } = await lab.run(`${node} test/xen/lab/dom0/block-suites.ts`, {
    timeout: 800,
  });
  assert.equal(status, 0, stdout);
  assert.match(stdout, /^\S+ pass [1-9]\d$/m);
});

test("a frontend that plays foul, and one whose disk is slow, disturb no guest", async () => {
  await using daemon = await lab.start("exec vbdkit daemon");
  await untilSaid(daemon, /serves vbd3 of domain 0/);
  await using guest = await Guest.create(lab, { name: "honest" });
  await lab.check(
    `truncate -s 16M /tmp/honest.img
    vbdkit attach honest 'vdev=xvda,target=/tmp/honest.img'
    vbdkit attach 0 'vdev=xvdb,target=memory 8M'
    vbdkit attach 0 'vdev=xvdc,target=--filter delay memory 8M rdelay=10s'`,
    slow,
  );
  await using foe = await lab.start(`${node} test/xen/lab/dom0/foul-frontend.ts xvdb`);
  await using sleeper = await lab.start(`${node} test/xen/lab/dom0/foul-frontend.ts xvdc slow`);
  await untilSaid(sleeper, /reads/);
  await guest.check(
    `until [ -b /dev/xvda ]; do sleep 0.1; done
    fio --name=load --filename=/dev/xvda --direct=1 --ioengine=libaio --iodepth=8 --bs=4k --rw=randwrite --size=8M \
      --verify=crc32c --verify_fatal=1 --output-format=terse`,
    slow,
  );
  await untilSaid(foe, /grants taken back/);
  foe.signal("TERM");
  const { status, stderr } = await foe.outcome;
  assert.equal(status, 0, stderr);
  sleeper.signal("KILL");
  await lab.check(
    "for vdev in xvdc xvdb; do vbdkit detach --force 0 $vdev; done; vbdkit detach honest xvda",
    slow,
  );
  assert.equal(await lab.check("xenstore-ls /local/domain/0/backend/vbd3"), "");
  // No process had to be begun again.
  assert.doesNotMatch(daemon.output.stderr, /goes on/);
  daemon.signal("TERM");
  assert.equal((await daemon.outcome).status, 0);
});
