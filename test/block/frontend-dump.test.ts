/** The polled write of a process that goes down, and what a frontend tells of itself. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { shows } from "../../src/testing/index.ts";
import { Operation, World } from "./frontend-world.ts";

test(
  "a dump is written before the call returns, after what was in flight",
  shows(["2.17"], async () => {
    await using at = await World.start();
    const write = at.submit(at.request(Operation.write, 0, 1));
    const bytes = Uint8Array.from({ length: 50 * 4096 }, (_, i) => i >>> 4);
    at.frontend.dumpWrite(4096, bytes);
    assert.deepEqual(at.bytes.subarray(4096, 4096 + bytes.length), bytes);
    assert.equal(await write.status, 0);
    assert.throws(() => at.frontend.dumpWrite(2 ** 40, bytes), { code: "ENOSPC" });
    at.frontend.dumpWrite(0, new Uint8Array(0));
  }),
);

test("a dump before a backend that says nothing ends with EBUSY", async () => {
  await using at = await World.start();
  at.backend.onrequest = undefined;
  assert.throws(() => at.frontend.dumpWrite(0, new Uint8Array(4096), 20), { code: "EBUSY" });
  for (const request of at.backend.seen) at.backend.answer(request, 0);
  at.backend.publish();
  at.serve();
  await at.disk.read(0, 4096);
});

test("a dump reaches a backend in another thread while this one runs no event loop", async () => {
  await using machine = await Machine.start({ reactor: new Reactor() });
  const disk = await machine.attach(parseDisk(["memory", "1M"], []), {
    vdev: "xvda",
    link: "worker",
  });
  const bytes = Uint8Array.from({ length: 300 * 512 }, (_, i) => i * 3);
  disk.frontend.dumpWrite(512, bytes);
  assert.deepEqual(await disk.read(512, bytes.length), bytes);
});

test(
  "a frontend tells what it is and what was negotiated by the names people know",
  shows(["4.9.4"], async () => {
    await using at = await World.start({
      keys: {
        info: "3",
        "feature-flush-cache": "1",
        "feature-barrier": "1",
        "feature-discard": "1",
        "feature-persistent": "1",
        "feature-max-indirect-segments": "64",
        "max-ring-page-order": "1",
      },
      limits: { maxIndirectSegments: 48 },
    });
    assert.deepEqual(at.frontend.device, {
      vdev: 51712,
      name: "xvda",
      readOnly: false,
      cdrom: true,
      removable: true,
    });
    assert.deepEqual(at.frontend.figures, {
      max_requests: 64,
      max_request_segments: 48,
      max_request_size: 48 * 4096,
      ring_pages: 2,
      features: "flush, write_barrier, discard, persistent_grants",
      max_indirect_segments: 48,
      max_queues: 1,
      max_ring_page_order: 2,
      trusted: true,
      feature_persistent: true,
    });
  }),
);

test(
  "a device number is found under its old name and in any base",
  shows(["3.2.virtual-device", "3.2.virtual-device-ext"], async () => {
    await using at = await World.start({ frontendKeys: { "virtual-device": "0x10000100" } });
    assert.equal(at.frontend.device.vdev, 268435712);
  }),
);
