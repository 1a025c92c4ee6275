/** vbdkit daemon under dom0's own blkfront: disks come, grow and go; processes are killed and restarted under load. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Lab, type LabProcess } from "../lab.ts";

let lab: Lab;
let daemon: LabProcess;
/** A process starts slowly there. */
const slow = { timeout: 240 };

before(async () => {
  lab = await Lab.boot();
  await lab.check("modprobe -a ext4 xen-blkfront; truncate -s 64M /tmp/a.img");
  daemon = await startDaemon();
  await lab.check("vbdkit attach 0 'vdev=xvdb,target=/tmp/a.img'", slow);
  await lab.check("until [ -b /dev/xvdb ]; do sleep 0.1; done");
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Resolves when it serves. */
async function startDaemon(): Promise<LabProcess> {
  const started = await lab.start("exec vbdkit daemon");
  for (let tries = 0; !started.output.stdout.includes("serves vbd3 of domain 0"); tries++) {
    assert.ok(tries < 2400, `the daemon says only: ${started.output.stderr}`);
    await sleep(100);
  }
  return started;
}

/** Writes of 4 KiB, 16 at a time, each read back and compared. */
async function startLoad(): Promise<LabProcess> {
  return await lab.start(
    "cd /tmp && exec fio --name=load --filename=/dev/xvdb --direct=1 --ioengine=libaio --iodepth=16 --bs=4k " +
      "--rw=randwrite --size=8M --verify=crc32c --verify_fatal=1 --output-format=terse",
  );
}

async function untilSaid(process: LabProcess, words: RegExp, times: number): Promise<void> {
  for (let tries = 0; process.output.stderr.split(words).length <= times; tries++) {
    assert.ok(tries < 2400, `the daemon says only: ${process.output.stderr}`);
    await sleep(100);
  }
}

test("what blkfront writes is in the image, and a file system on it is sound", async () => {
  await lab.check(
    `set -e
    dd if=/dev/urandom of=/tmp/random bs=64k count=16
    dd if=/tmp/random of=/dev/xvdb bs=64k oflag=direct
    cmp -n 1048576 /tmp/random /tmp/a.img
    mkfs.ext4 -q /dev/xvdb
    mkdir -p /mnt; mount -t ext4 /dev/xvdb /mnt; cp /tmp/random /mnt; umount /mnt
    fsck.ext4 -fn /dev/xvdb`,
    slow,
  );
});

test("a disk grows under its guest, and is listed", async () => {
  await lab.check("vbdkit resize 0 xvdb +32M", slow);
  await lab.check("until [ $(cat /sys/block/xvdb/size) = 196608 ]; do sleep 0.1; done");
  const [dom0] = JSON.parse(await lab.check("vbdkit list 0 --json", slow));
  assert.deepEqual(
    [dom0.disks[0].vdev, dom0.disks[0].state, dom0.disks[0].size],
    ["xvdb", "connected", 96 * 2 ** 20],
  );
});

test("a process that is killed under load is followed by another, and nothing is lost", async () => {
  await using load = await startLoad();
  for (let kill = 1; kill <= 2; kill++) {
    await sleep(1000);
    await lab.check(
      "kill -9 $(ls -l /proc/[0-9]*/fd 2>/dev/null | awk '/^.proc/ {gsub(/[^0-9]/, \"\"); p = $0} /a.img/ {print p}')",
    );
    await untilSaid(daemon, /: goes on:/, kill);
  }
  const { status, stdout, stderr } = await load.outcome;
  assert.equal(status, 0, stdout + stderr);
});

test("a daemon that is restarted under load is followed by another, and nothing is lost", async () => {
  await using load = await startLoad();
  await sleep(1000);
  daemon.signal("TERM");
  assert.equal((await daemon.outcome).status, 0);
  daemon = await startDaemon();
  await untilSaid(daemon, /: goes on:/, 1);
  const { status, stdout, stderr } = await load.outcome;
  assert.equal(status, 0, stdout + stderr);
});

test("a disk that is detached leaves nothing", async () => {
  await lab.check("vbdkit detach 0 xvdb", slow);
  assert.equal(
    await lab.check("ls /run/vbdkit/journals; xenstore-ls /local/domain/0/backend/vbd3"),
    "",
  );
  assert.equal(await lab.check("ls /dev/xvdb 2>/dev/null || true"), "");
});
