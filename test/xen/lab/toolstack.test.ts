/** Guests made by xl whose disks `vbdkit daemon` serves: their roots, disks that come and go, GRUB before Linux. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { LabDaemon, whatIsLeft } from "./daemon.ts";
import { Guest } from "./guest.ts";
import { makeGuestDisk } from "./guest-disk.ts";
import { Lab } from "./lab.ts";

const image = "/tmp/guest.img";
/** In the syntax of xl-disk-configuration(5). */
const ours = (words: string) => `format=raw,script=block-vbdkit,${words}`;
const rootDisk = ours(`vdev=xvda,access=rw,target=${image}`);
/** dom0's own root file system, for its programs. */
const toolsDisk = ours("vdev=xvdz,access=ro,target=/dev/vda");

let lab: Lab;
let daemon: LabDaemon;

before(async () => {
  lab = await Lab.boot();
  await makeGuestDisk(lab, image, "/dev/xvda");
  daemon = await LabDaemon.start(lab, "--kind vbd");
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Prints what there is of the guest's disks, in the xenstore and among the daemon's journals. */
function tracesOf(domid: number, vdev = ""): string {
  const directories = `^/(local/domain|libxl)/(0/backend/vbd/${domid}|${domid}/device/vbd)/${vdev}`;
  return `xenstore-ls -f | grep -E '${directories}'; ls /run/vbdkit/journals | grep '^${domid}-${vdev}'; true`;
}

test("a guest of xl has its root on our disk; another is plugged and unplugged; nothing is lost when the daemon is restarted and killed", async () => {
  const guest = await Guest.create(lab, {
    ...{ name: "web", vcpus: 2, root: "/dev/xvda", disks: [rootDisk, toolsDisk] },
  });
  assert.match(await guest.check("grep ' / ' /proc/mounts"), /^\/dev\/xvda \/ ext4 rw/m);

  // Both ends' words: two rings, indirect descriptors (else a request has 11 segments), persistent grants.
  const frontend = `/local/domain/${guest.domid}/device/vbd/51712`;
  const backend = `/local/domain/0/backend/vbd/${guest.domid}/51712`;
  const keys = [
    ...["multi-queue-num-queues", "feature-persistent"].map((key) => `${frontend}/${key}`),
    ...["feature-persistent", "feature-max-indirect-segments"].map((key) => `${backend}/${key}`),
  ];
  assert.equal(await lab.check(`xenstore-read ${keys.join(" ")}`), "2\n1\n1\n256\n");
  assert.equal(
    await guest.check("ls /sys/block/xvda/mq; cat /sys/block/xvda/queue/max_segments"),
    "0\n1\n32\n",
  );

  await lab.check("truncate -s 16M /tmp/b.img");
  await lab.check(`xl block-attach web '${ours("vdev=xvdb,access=rw,target=/tmp/b.img")}'`);
  const sum = await guest.check(
    "until [ -b /dev/xvdb ]; do usleep 10000; done; dd if=/dev/urandom of=/run/data bs=1M count=1; " +
      "dd if=/run/data of=/dev/xvdb bs=64k oflag=direct; sha256sum </run/data",
  );
  assert.equal(await lab.check("dd if=/tmp/b.img bs=1M count=1 | sha256sum"), sum);
  assert.match(await lab.check(tracesOf(guest.domid, "51728")), /backend.*device.*\d-51728-0\n/s);
  await lab.check("xl block-detach web xvdb");
  assert.equal(await whatIsLeft(lab, tracesOf(guest.domid, "51728")), "");

  await guest.check(
    "mkdir /tools; mount -t squashfs -o ro /dev/xvdz /tools; mount -o bind /dev /tools/dev; " +
      "mount -o bind / /tools/mnt",
  );
  const load = guest.run(
    "until [ -e /run/enough ]; do chroot /tools fio --name=load --directory=/mnt --size=4M --numjobs=2 " +
      "--rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c " +
      "--verify_fatal=1 --verify_state_save=0 --output-format=terse || exit 1; done",
    { timeout: 600 },
  );
  await guest.check("until [ -e /load.1.0 ]; do usleep 100000; done");
  await daemon.restart();
  await daemon.goesOn(2);
  await daemon.killGuestProcess(guest.domid, 2);
  await guest.check("touch /run/enough");
  const { status, stdout, stderr } = await load;
  assert.equal(status, 0, stdout + stderr);

  await lab.check("xl shutdown -w web");
  assert.equal(await whatIsLeft(lab, tracesOf(guest.domid)), "");
  await lab.check(`e2fsck -fn ${image}`);
});

test("GRUB boots Linux from a disk that Linux then has, and xl destroys the guest", async () => {
  const guest = await Guest.create(lab, { name: "grub", kind: "grub", disks: [rootDisk] });
  const mounted = await guest.check("grep ' / ' /proc/mounts; cat /proc/cmdline");
  assert.match(mounted, /^\/dev\/xvda \/ ext4 rw(.*\n)*.*lab\.root=\/dev\/xvda/);
  assert.match(guest.console, /Reading \(xen\/xvda\)\/boot\/grub\/grub\.cfg/);
  await lab.check("xl destroy grub");
  assert.equal(await whatIsLeft(lab, tracesOf(guest.domid)), "");
});

test("xl says why a disk cannot be served, and removes it", async () => {
  const refused = await lab.run(`xl block-attach 0 '${ours("vdev=xvdb,target=/tmp/none.img")}'`);
  assert.notEqual(refused.status, 0);
  assert.match(refused.stderr, /script: there is no \/tmp\/none\.img/);
  await lab.check("xl block-detach 0 xvdb");
  assert.equal(await whatIsLeft(lab, tracesOf(0, "51728")), "");
});
