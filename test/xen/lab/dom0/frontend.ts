/** Run in dom0: our frontend on the vbd whose frontend directory is named. Prints what was negotiated, as JSON, once data
 * came back as it was written. */
import assert from "node:assert/strict";
import { BlockFrontend } from "../../../../src/block/index.ts";
import { Disk } from "../../../../src/store/disk.ts";
import { systemClock } from "../../../../src/util/clock.ts";
import { openHost } from "../../../../src/xen/host/index.ts";

const [path = ""] = process.argv.slice(2);
await using domain = await openHost();
const frontend = await BlockFrontend.connect(domain, path, { clock: systemClock });
const disk = new Disk(frontend, domain.reactor);
const data = Buffer.alloc(1 << 20);
for (let i = 0; i < data.length; i += 4) data.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i);
await disk.write(8192, data);
if (frontend.negotiated.flush) await disk.flush();
await Promise.all(
  Array.from({ length: 16 }, async (_, i) => {
    const part = await disk.read(8192 + i * 65536, 65536);
    assert.ok(data.subarray(i * 65536, (i + 1) * 65536).equals(part), `part ${i}`);
  }),
);
const { negotiated } = frontend;
await disk[Symbol.asyncDispose]();
assert.equal(domain.grants.counters.granted, 0);
process.stdout.write(JSON.stringify(negotiated));
