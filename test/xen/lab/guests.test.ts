/** What the lab offers for tests of disks: the kernel's backend and frontend, QEMU's backend, guests. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Guest } from "./guest.ts";
import { Lab } from "./lab.ts";

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
  await lab.check("modprobe -a brd loop xen-blkback xen-blkfront");
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Writes a random MiB to the disk and compares what the image behind it has. */
async function throughTheDisk(device: string, image: string): Promise<void> {
  const script = `
    until [ -b ${device} ]; do usleep 10000; done
    dd if=/dev/urandom of=/tmp/data bs=1M count=1
    dd if=/tmp/data of=${device} bs=64k oflag=direct
    for file in /tmp/data ${image}; do dd if=$file bs=1M count=1 | sha256sum; done`;
  const [written, stored] = (await lab.check(script)).trim().split("\n");
  assert.equal(written, stored);
}

test("dom0's frontend writes to its own backend on a RAM disk", async () => {
  await lab.check("xl block-attach 0 vdev=xvdb,access=rw,target=/dev/ram0");
  await throughTheDisk("/dev/xvdb", "/dev/ram0");
  await lab.check("xl block-detach 0 xvdb");
});

test("dom0's frontend writes to a file that QEMU serves", async () => {
  await lab.check("truncate -s 16M /tmp/disk.img; start-qdisk");
  await lab.check(
    "xl block-attach 0 format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=/tmp/disk.img",
  );
  await throughTheDisk("/dev/xvdc", "/tmp/disk.img");
  await lab.check("xl block-detach 0 xvdc");
});

test("a PV guest with two processors runs commands, and what it writes is in dom0's image", async () => {
  await using guest = await Guest.create(lab, {
    name: "pv",
    vcpus: 2,
    disks: ["vdev=xvda,access=rw,target=/dev/ram1"],
  });
  assert.equal(await guest.check("nproc"), "2\n");
  assert.deepEqual(await guest.run("echo one; echo two >&2; exit 3"), {
    status: 3,
    stdout: "one\n",
    stderr: "two\n",
  });
  const sum = await guest.check(
    "dd if=/dev/urandom of=/run/data bs=1M count=1; dd if=/run/data of=/dev/xvda bs=64k oflag=direct; sha256sum </run/data",
  );
  assert.equal(await lab.check("dd if=/dev/ram1 bs=1M count=1 | sha256sum"), sum);
});
