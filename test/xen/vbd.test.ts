import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { shows } from "../../src/testing/index.ts";
import { XenError } from "../../src/xen/domain.ts";
import {
  backendPath,
  decodeVdev,
  encodeVdev,
  frontendPath,
  parseVdev,
  queuePath,
  ringReferenceKey,
  toolstackPath,
  vdevName,
} from "../../src/xen/vbd.ts";

test(
  "the examples of xen-vbd-interface(7) mean what it says",
  shows(["4.8.2", "4.8.5", "5.1", "5.2", "5.3", "5.4", "5.5"], () => {
    const same = [
      ["d0", "d0p0", "xvda"],
      ["d1p2", "xvdb2"],
      ["d536p37", "xvdtq37"],
    ];
    for (const [first, ...others] of same) {
      for (const other of others) assert.equal(parseVdev(other), parseVdev(first!), other);
    }
    assert.deepEqual(decodeVdev(parseVdev("d536p37")), { bus: "xvd", disk: 536, partition: 37 });
    assert.deepEqual(decodeVdev(parseVdev("sdb3")), { bus: "sd", disk: 1, partition: 3 });
    assert.deepEqual(decodeVdev(parseVdev("hdc2")), { bus: "hd", disk: 2, partition: 2 });
  }),
);

test(
  "numbers are made by the table of xen-vbd-interface(7)",
  shows(["4.8.1", "4.8.3", "5.1", "5.2", "5.3", "5.4", "5.5"], () => {
    assert.equal(parseVdev("xvda"), 51712);
    assert.equal(parseVdev("xvda1"), (202 << 8) | 1);
    assert.equal(parseVdev("xvdp15"), (202 << 8) | (15 << 4) | 15);
    assert.equal(parseVdev("xvdq"), (1 << 28) | (16 << 8));
    assert.equal(parseVdev("xvda16"), (1 << 28) | 16);
    assert.equal(parseVdev("xvdaa"), (1 << 28) | (26 << 8));
    assert.equal(parseVdev("sdp15"), (8 << 8) | (15 << 4) | 15);
    assert.equal(parseVdev("hda1"), 769);
    assert.equal(parseVdev("hdb63"), (3 << 8) | (1 << 6) | 63);
    assert.equal(parseVdev("hdc"), 22 << 8);
    assert.equal(parseVdev("hdd63"), (22 << 8) | (1 << 6) | 63);
  }),
);

test(
  "numbers are read as decimal, hexadecimal and octal, also where nobody has a name for them",
  shows(["3.2.virtual-device"], () => {
    assert.equal(parseVdev("51712"), 51712);
    assert.equal(parseVdev("0xca00"), 51712);
    assert.equal(parseVdev("0145000"), 51712);
    assert.equal(parseVdev("0"), 0);
    assert.equal(parseVdev("8448"), 33 << 8);
    assert.equal(vdevName(33 << 8), "8448");
  }),
);

test(
  "names that no form has room for are refused with EINVAL",
  shows(["5.6"], () => {
    const refused = [
      ...[
        "",
        "xvd",
        "xvda01",
        "xvda256",
        "xvdA",
        "sdq",
        "sda16",
        "hde",
        "hda64",
        "vda",
        " xvda",
        "xvda ",
      ],
      ...[
        "d",
        "dp1",
        "d0p",
        "d0p256",
        "d1048576",
        "d01",
        "-1",
        "1e3",
        "0x",
        "09",
        "xvdzzzzz",
        "/dev/xvda",
      ],
      ...["536870912", "0x20000000", "4294967295", "99999999999"],
    ];
    for (const text of refused) {
      assert.throws(
        () => parseVdev(text),
        (error) =>
          error instanceof XenError &&
          error.code === "EINVAL" &&
          error.message.includes(JSON.stringify(text)),
        text,
      );
    }
  }),
);

const device = fc.oneof(
  fc.record({
    bus: fc.constant("xvd" as const),
    disk: fc.nat(0xf_ffff),
    partition: fc.nat(255),
  }),
  fc.record({
    bus: fc.constant("xvd" as const),
    disk: fc.nat(31),
    partition: fc.nat(31),
  }),
  fc.record({ bus: fc.constant("sd" as const), disk: fc.nat(15), partition: fc.nat(15) }),
  fc.record({ bus: fc.constant("hd" as const), disk: fc.nat(3), partition: fc.nat(63) }),
);

test(
  "every device survives the way over its number and its name",
  shows(["4.8.1", "4.8.4", "5.1", "5.2", "5.3", "5.4", "5.5"], () => {
    fc.assert(
      fc.property(device, (wanted) => {
        const vdev = encodeVdev(wanted)!;
        assert.ok(vdev >= 0 && vdev < 2 << 28);
        assert.deepEqual(decodeVdev(vdev), { ...wanted });
        assert.equal(parseVdev(vdevName(vdev)), vdev);
        assert.equal(parseVdev(String(vdev)), vdev);
      }),
    );
  }),
);

test("two devices never share a number", () => {
  fc.assert(
    fc.property(device, device, (a, b) => {
      fc.pre(JSON.stringify(a) !== JSON.stringify(b));
      assert.notEqual(encodeVdev(a), encodeVdev(b));
    }),
  );
});

test("any 32-bit number has a name that is a number again or names the same device", () => {
  fc.assert(
    fc.property(fc.oneof(fc.nat(0xffff), fc.nat(0xffff_ffff)), (vdev) => {
      const meaning = decodeVdev(vdev);
      if (meaning === undefined) assert.equal(vdevName(vdev), String(vdev));
      else assert.deepEqual(decodeVdev(parseVdev(vdevName(vdev))), meaning);
    }),
  );
});

test("paths and ring keys are those that every toolstack and driver agree on", () => {
  assert.equal(frontendPath(3, 51712), "/local/domain/3/device/vbd/51712");
  assert.equal(backendPath(0, "vbd", 3, 51712), "/local/domain/0/backend/vbd/3/51712");
  assert.equal(backendPath(2, "qdisk", 3, 769), "/local/domain/2/backend/qdisk/3/769");
  assert.equal(toolstackPath(3, 51712), "/libxl/3/device/vbd/51712");
  assert.equal(queuePath(frontendPath(3, 51712), 1), "/local/domain/3/device/vbd/51712/queue-1");
  assert.equal(ringReferenceKey(), "ring-ref");
  assert.equal(ringReferenceKey(7), "ring-ref7");
});
