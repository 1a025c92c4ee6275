/** What vbdkit connect is told to connect to. */
import assert from "node:assert/strict";
import { resolve } from "node:path";
import { test } from "node:test";
import { connectTarget } from "../../src/cli/connect-target.ts";
import { UsageError } from "../../src/cli/errors.ts";

test("a vdev, or a directory of the xenstore, is a device that is there", () => {
  for (const device of ["xvdb", "51728", "device/vbd/51728", "/local/domain/3/device/vbd/51728"]) {
    assert.deepEqual(connectTarget([device]), { text: device, device });
  }
});

test("a disk in xl's syntax is a device to make, its file looked up from one's own folder", () => {
  assert.deepEqual(connectTarget(["disk.img,raw,xvdb,r"]), {
    text: "disk.img,raw,xvdb,r",
    backend: undefined,
    disk: { vdev: "xvdb", target: resolve("disk.img"), format: "raw", readOnly: true },
  });
  assert.deepEqual(connectTarget(["vdev=xvdb,backend=storage", "discard,target=vg/data"]), {
    text: "vdev=xvdb,backend=storage discard,target=vg/data",
    backend: "storage",
    disk: { vdev: "xvdb", target: "vg/data", readOnly: false, discard: true },
  });
  const tap = connectTarget(["vdev=xvdb,backendtype=tap,target=memory 1G"]);
  assert.equal("disk" in tap && tap.disk.target, "memory 1G");
});

test("what can be no device is refused with what to write", () => {
  const refused = (words: string[], message: RegExp) =>
    assert.throws(
      () => connectTarget(words),
      (error) => {
        assert.ok(error instanceof UsageError);
        assert.match(error.message, message);
        return true;
      },
    );
  refused(["/dev/vg/data"], /write|vdev=xvdb,target=\/dev\/vg\/data/);
  refused(["vdev=hdc,cdrom,target=a.iso"], /^cdrom: /);
  refused(["vdev=xvda,backendtype=standalone,target=a"], /phy, qdisk or tap/);
  refused(["target=a"], /vdev/);
});
