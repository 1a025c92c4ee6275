/** Disks on a real Xen, dom0 being both ends: Linux's blkback under our frontend. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Lab } from "./lab.ts";

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

const node = "node --conditions=vbdkit-source";
const slow = { timeout: 300 };

test("our frontend has a disk of Linux's blkback", async () => {
  const frontend = "/local/domain/0/device/vbdkit/51728";
  const backend = "/local/domain/0/backend/vbd/0/51728";
  await lab.check(
    `
    set -e
    modprobe xen-blkback
    modprobe brd rd_nr=1 rd_size=32768
    xenstore-write ${frontend}/backend ${backend} ${frontend}/backend-id 0 ${frontend}/state 1
    xenstore-write ${frontend}/virtual-device 51728 ${frontend}/device-type disk
    xenstore-write ${backend}/frontend ${frontend} ${backend}/frontend-id 0 ${backend}/online 1
    xenstore-write ${backend}/mode w ${backend}/type phy ${backend}/params /dev/ram0
    xenstore-write ${backend}/dev xvdb ${backend}/device-type disk ${backend}/physical-device 1:0
    xenstore-write ${backend}/hotplug-status connected ${backend}/state 1`,
  );
  const printed = await lab.check(`${node} test/xen/lab/dom0/frontend.ts ${frontend}`, slow);
  const { indirect, persistent, sectors } = JSON.parse(printed);
  assert.deepEqual(
    { indirect, persistent, sectors },
    { indirect: true, persistent: true, sectors: 65536 },
  );
  await lab.check(`xenstore-rm ${frontend}; xenstore-rm ${backend}`);
});
