/** Disks on a real Xen, dom0 being both ends: Linux's blkback and QEMU under our frontend, which vbdkit connect makes. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Lab, type LabProcess } from "./lab.ts";

const node = "node --conditions=vbdkit-source";
const client = `${node} test/xen/lab/dom0/nbd-client.ts`;
const slow = { timeout: 300 };
const BYTES = 32 * 2 ** 20;

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
  await lab.check(
    `modprobe -a xen-blkback brd loop; truncate -s ${BYTES} /tmp/disk.img; start-qdisk`,
  );
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** What it says of itself once it serves. */
async function greeting(server: LabProcess): Promise<string> {
  while (!server.output.stdout.endsWith("}\n")) {
    if (server.output.stderr !== "") throw new Error(server.output.stderr);
    await sleep(100);
  }
  return server.output.stdout;
}

test("a disk of Linux's blkback is served until SIGTERM, and then its nodes are gone", async () => {
  await lab.check(`losetup /dev/loop0 /tmp/disk.img`);
  await using server = await lab.start("exec vbdkit connect vdev=xvdb,target=/dev/loop0 --json");
  const { uri, frontendPath, backendPath, negotiated } = JSON.parse(await greeting(server));
  assert.deepEqual(
    [frontendPath, backendPath],
    ["/local/domain/0/device/vbdkit/51728", "/local/domain/0/backend/vbd/0/51728"],
  );
  const { indirect, persistent, flush, sectors } = negotiated;
  assert.deepEqual([indirect, persistent, flush, sectors], [true, true, true, BYTES / 512]);
  assert.equal(await lab.check(`${client} '${uri}'`, slow), String(BYTES));
  const digest = (file: string) => lab.check(`dd if=${file} bs=1M count=1 | sha256sum`);
  assert.equal(await digest("/dev/loop0"), await digest("/tmp/disk.img"));
  server.signal("TERM");
  const { status, stderr } = await server.outcome;
  assert.deepEqual([status, stderr], [0, ""]);
  const left = `xenstore-ls /local/domain/0/backend/vbd; xenstore-ls /local/domain/0/device/vbdkit; losetup -d /dev/loop0; ls -d /tmp/vbdkit-* 2>/dev/null || true`;
  assert.equal(await lab.check(left), "");
});

test("a disk of QEMU is served as long as a command runs, and then its nodes are gone", async () => {
  const connect = `vbdkit connect vdev=xvdc,target=/tmp/disk.img --run '${client} "$uri"'`;
  assert.equal(await lab.check(connect, slow), String(BYTES));
  const left = `xenstore-ls /local/domain/0/backend/qdisk; xenstore-ls /local/domain/0/device/vbd`;
  assert.equal(await lab.check(`${left} 2>/dev/null || true`), "");
});
