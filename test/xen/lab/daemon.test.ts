/** vbdkit daemon under dom0's own blkfront: disks that vbdkit attach makes come, grow and go, beside others that are misused. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon, whatIsLeft } from "./daemon.ts";
import { Lab } from "./lab.ts";

const image = "/tmp/a.img";
const attach = `vbdkit attach 0 'vdev=xvdb,target=${image}'`;

const foe = "exec node --conditions=vbdkit-source test/xen/lab/dom0/foul-frontend.ts";

/** Of the disk, wherever it had left something. */
const left = "ls /run/vbdkit/journals; xenstore-ls -f | grep 51728; ls /dev/xvdb 2>/dev/null; true";

let lab: Lab;
let daemon: LabDaemon;

before(async () => {
  lab = await Lab.boot();
  await lab.check(`modprobe -a ext4 xen-blkfront; truncate -s 64M ${image}`);
  daemon = await LabDaemon.start(lab);
  await lab.check(`${attach}; until [ -b /dev/xvdb ]; do usleep 10000; done`);
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("what blkfront writes is in the image, flushes reach the disk, and what it discards is a hole there", async () => {
  const [flushed, blocks, fewer] = (
    await lab.check(`
    set -e
    dd if=/dev/urandom of=/tmp/random bs=64k count=64
    flushes() { awk '{print $16}' /sys/block/xvdb/stat; }
    before=$(flushes)
    dd if=/tmp/random of=/dev/xvdb bs=64k oflag=direct conv=fsync
    echo $(($(flushes) - before))
    cmp -n 4194304 /tmp/random ${image}
    stat -c %b ${image}
    blkdiscard --offset 1M --length 2M /dev/xvdb
    stat -c %b ${image}
    cmp -n 1048576 /tmp/random ${image}
    cmp -n 1048576 /tmp/random /dev/xvdb 3145728 3145728
    cmp -n 2097152 /dev/xvdb /dev/zero 1048576 0`)
  )
    .trim()
    .split("\n")
    .map(Number);
  assert.deepEqual([flushed, blocks! - fewer!], [1, 4096]);
});

test("a disk grows under a file system that is mounted, which is sound afterwards", async () => {
  await lab.check(`
    set -e
    mkfs.ext4 -q /dev/xvdb
    mount -t ext4 /dev/xvdb /mnt
    cp /tmp/random /mnt
    vbdkit resize 0 xvdb +32M
    until [ $(cat /sys/block/xvdb/size) = 196608 ]; do usleep 10000; done
    resize2fs /dev/xvdb
    cmp /tmp/random /mnt/random
    umount /mnt
    fsck.ext4 -fn /dev/xvdb`);
  const [dom0] = JSON.parse(await lab.check("vbdkit list 0 --json"));
  assert.deepEqual(
    [dom0.disks[0].vdev, dom0.disks[0].state, dom0.disks[0].size],
    ["xvdb", "connected", 96 * 2 ** 20],
  );
  assert.match(
    await lab.check("dumpe2fs -h /dev/xvdb | grep 'Block count\\|Block size' | tr -d ' '"),
    /Blockcount:98304\nBlocksize:1024|Blockcount:24576\nBlocksize:4096/,
  );
});

test("blocks that fio writes, sixteen at a time, are read back as they were written, also when the daemon is restarted and killed meanwhile", async () => {
  const load = await lab.start(
    "cd /tmp; until [ -e enough ]; do fio --name=load --filename=/dev/xvdb --direct=1 --ioengine=libaio --iodepth=16 " +
      "--bsrange=4k-128k --rw=randwrite --size=8M --verify=crc32c --verify_fatal=1 --verify_state_save=0 " +
      "--output-format=terse || exit 1; touch passed; done",
  );
  await lab.check("until [ -e /tmp/passed ]; do sleep 0.1; done");
  await daemon.restart();
  await daemon.goesOn(1);
  await daemon.killGuestProcess(0, 1);
  await lab.check("touch /tmp/enough");
  const { status, stdout, stderr } = await load.outcome;
  assert.equal(status, 0, stdout + stderr);
});

test("a frontend that plays foul, and one whose disk takes ten seconds, disturb no other disk of their process", async () => {
  const { length } = daemon.said;
  // The kernel's blkfront takes none that comes now.
  await lab.check(`
    set -e
    modprobe xen-gntalloc
    echo 0 >/sys/bus/xen/drivers_autoprobe
    vbdkit attach 0 'vdev=xvdc,target=memory 8M' & first=$!
    vbdkit attach 0 'vdev=xvdd,target=--filter delay memory 8M rdelay=10s' & second=$!
    wait $first
    wait $second
    echo 1 >/sys/bus/xen/drivers_autoprobe`);
  await using load = await lab.start(`
    cd /tmp
    for ((pass = 1;; pass++)); do
      fio --name=load --filename=/dev/xvdb --direct=1 --ioengine=libaio --iodepth=8 --bs=4k --rw=randwrite --size=4M \
        --randseed=$pass --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=terse || exit 1
      echo pass $pass
      [ -e end ] && exit 0
    done`);
  await using player = await lab.start(`${foe} xvdc`);
  await using sleeper = await lab.start(`${foe} xvdd slow`);
  for (const process of [player, sleeper]) {
    const { status, stdout, stderr } = await process.outcome;
    assert.equal(status, 0, `${stdout}${stderr}${daemon.said}`);
  }
  await lab.check("touch /tmp/end");
  const { status, stdout, stderr } = await load.outcome;
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^pass 1$/m);
  await lab.check("vbdkit detach 0 xvdc && vbdkit detach 0 xvdd");
  assert.equal(await whatIsLeft(lab, "xenstore-ls -f | grep '51744\\|51760'; true"), "");
  // No process had to be begun again.
  assert.doesNotMatch(daemon.said.slice(length), /goes on/);
});

// Linux's blkfront does not hold on to a disk that is in use: the file system on it has lost it.
test("a disk that is detached while it is mounted goes at once, and leaves nothing", async () => {
  await lab.check(
    "mkfs.ext4 -q /dev/xvdb; mount -t ext4 /dev/xvdb /mnt; cp /tmp/random /mnt; sync",
  );
  await lab.check("vbdkit detach 0 xvdb");
  assert.equal(await whatIsLeft(lab, left), "");
  // What is written may look well until it has to be on the disk.
  const lost = await lab.run("dd if=/tmp/random of=/mnt/file bs=4k count=1 conv=fsync");
  assert.notEqual(lost.status, 0);
  await lab.check(`umount /mnt; e2fsck -fy ${image}; [ $? -le 1 ]`);
});
