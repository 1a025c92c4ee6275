/** The ring is really in the path: its indexes, the grant tables and the events say so, and breaking it breaks I/O. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import type { ServerInfo } from "../../src/cli/server-info.ts";
import { Machine, openStore } from "../../src/index.ts";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { BlockRequest, Operation } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import { shows } from "../../src/testing/index.ts";
import { serve, vbdkit } from "../support/vbdkit.ts";

const run = promisify(execFile);

async function infoOf(directory: string): Promise<ServerInfo> {
  const { stdout, stderr } = await vbdkit(["info", "--json", directory]);
  assert.equal(stderr, "");
  return JSON.parse(stdout) as ServerInfo;
}

for (const link of ["thread", "worker", "process"]) {
  test(
    `ring pages, grant table and events count what a client did (backend in a ${link})`,
    shows(["4.9.7", "4.9.8"], async () => {
      await using served = await serve(["--link", link, "--no-persistent", "memory", "4M"]);
      const before = (await infoOf(served.info.directory)).disks[0]!.attachment;
      // 64 reads of 64 KiB: one indirect request each, with 16 pages of data and one of segments.
      const script = Array.from({ length: 64 }, (_, i) => ["-c", `read ${i * 64}k 64k`]).flat();
      await run("qemu-io", ["-r", "-f", "raw", ...script, served.info.uri]);
      const after = (await infoOf(served.info.directory)).disks[0]!.attachment;
      const requests = after.ring.requestsProduced - before.ring.requestsProduced;
      assert.ok(requests >= 64 && requests < 80, `${requests} requests`);
      assert.equal(after.ring.responsesProduced - before.ring.responsesProduced, requests);
      assert.equal(after.backend.queue!.requests - before.backend.queue!.requests, requests);
      assert.equal(after.backend.queue!.responses - before.backend.queue!.responses, requests);
      assert.equal(after.frontend.requests - before.frontend.requests, requests);
      const sectors = after.backend.queue!.readSectors - before.backend.queue!.readSectors;
      assert.ok(sectors >= 8192 && sectors < 9000, `${sectors} sectors`);
      const maps = after.backend.grants.maps - before.backend.grants.maps;
      assert.ok(maps >= 64 * 17, `${maps} pages mapped`);
      assert.equal(after.backend.grants.unmaps - before.backend.grants.unmaps, maps);
      assert.ok(after.frontend.copiedBytes - before.frontend.copiedBytes >= 4 * 2 ** 20);
      assert.ok(after.frontend.events.sent > before.frontend.events.sent);
      assert.ok(after.backend.events.sent > before.backend.events.sent);
    }),
  );
}

test(
  "with persistent grants a page is mapped once and used again",
  shows(["4.1.1"], async () => {
    await using served = await serve(["memory", "4M"]);
    const script = Array.from({ length: 64 }, (_, i) => ["-c", `read ${i * 64}k 64k`]).flat();
    await run("qemu-io", ["-r", "-f", "raw", ...script, served.info.uri]);
    const { backend } = (await infoOf(served.info.directory)).disks[0]!.attachment;
    assert.ok(backend.queue!.persistentPages >= 16);
    assert.ok(backend.grants.maps < 64 * 16, `${backend.grants.maps} pages mapped`);
  }),
);

/** Bytes of a slot and of the ring's header; where the first segment's grant reference lies in a slot (x86_64). */
const SLOT = { bytes: 112, header: 64, reference: 24 };

test("a byte flipped in a published request makes that request fail, and no other", async () => {
  await using machine = await Machine.start();
  await using disk = await machine.attach(
    await openStore({ driver: "memory", parameters: { size: "1M" }, filters: [] }),
    { vdev: "xvda" },
  );
  const { bytes } = disk.frontend.ring;
  const { ring, negotiated } = await disk.information();
  const slot = ring.requestsProduced % negotiated.ringSlots;
  using region = allocateRegion(4096);
  const segments = new SegmentList(1);
  segments.add(region, 0, 4096);
  const { promise, resolve } = Promise.withResolvers<number>();
  const request = new BlockRequest({ completed: ({ status }) => resolve(status) });
  request.operation = Operation.read;
  request.length = 4096;
  request.segments = segments;
  disk.frontend.submit(request);
  // The frontend publishes in this round of the reactor, the backend looks in a later one: in between, a cosmic ray.
  machine.reactor.dirty({
    kick: () => {
      bytes[SLOT.header + slot * SLOT.bytes + SLOT.reference + 3]! ^= 0x40;
    },
  });
  machine.reactor.soon();
  assert.equal(await promise, Errno.EIO);
  const { backend } = await disk.information();
  assert.deepEqual(backend.queue!.brokenRules, { grant: 1 });
  assert.equal(backend.queue!.mappedPages, backend.queue!.persistentPages);
  await disk.read(0, 4096);
});

test("a byte flipped in the ring's indexes ends the disk with an error, not the process", async () => {
  await using machine = await Machine.start();
  await using disk = await machine.attach(
    await openStore({ driver: "memory", parameters: { size: "1M" }, filters: [] }),
    { vdev: "xvda" },
  );
  await disk.write(0, new Uint8Array(4096).fill(7));
  const { bytes } = disk.frontend.ring;
  // rsp_prod: the frontend looks at it before it puts anything new on the ring.
  bytes[11]! ^= 0x80;
  await assert.rejects(disk.read(0, 4096));
  await assert.rejects(disk.flush());
});

test(
  "xenstore-ls shows both ends Connected, with the keys of a real vbd",
  shows(
    [
      "3.4.toolstack",
      "3.2.backend",
      "3.2.protocol",
      "3.2.event-channel",
      "3.2.ring-refN",
      "3.2.ring-page-order",
      "3.2.device-type",
    ],
    async () => {
      await using served = await serve(["memory", "8M"]);
      const env = { ...process.env, XENSTORED_PATH: served.info.xenstoreSocket };
      const { stdout } = await run("xenstore-ls", ["-f"], { env });
      const nodes = new Map(
        stdout
          .split("\n")
          .map((line) => /^(\S+) = "(.*)"$/.exec(line))
          .filter((match) => match !== null)
          .map((match) => [match[1]!, match[2]!]),
      );
      const front = "/local/domain/1/device/vbd/51712";
      const back = "/local/domain/0/backend/vbd/1/51712";
      const expected: Record<string, string> = {
        [`${front}/state`]: "4",
        [`${back}/state`]: "4",
        [`${front}/backend`]: back,
        [`${back}/frontend`]: front,
        [`${front}/virtual-device`]: "51712",
        [`${back}/dev`]: "xvda",
        [`${back}/mode`]: "w",
        [`${back}/sectors`]: String((8 * 2 ** 20) / 512),
        [`${back}/sector-size`]: "512",
        [`${back}/feature-flush-cache`]: "1",
        [`${back}/feature-persistent`]: "1",
        [`${back}/feature-max-indirect-segments`]: "256",
        [`${front}/protocol`]: "x86_64-abi",
      };
      for (const [path, value] of Object.entries(expected))
        assert.equal(nodes.get(path), value, path);
      for (const key of ["event-channel", "ring-page-order", "ring-ref0"]) {
        assert.match(nodes.get(`${front}/${key}`) ?? "", /^\d+$/, key);
      }
    },
  ),
);
