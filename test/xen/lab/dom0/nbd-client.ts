/** Run in dom0: writes to the disk at the NBD URI that is named, reads it back, has the end of it forgotten where the disk
 * can, and prints its size once everything was as it should be. */
import assert from "node:assert/strict";
import { threadReactor } from "../../../../src/io/reactor.ts";
import { Disk } from "../../../../src/store/disk.ts";
import { openStore, parseDisk } from "../../../../src/store/registry.ts";

const [uri = ""] = process.argv.slice(2);
await using disk = new Disk(await openStore(parseDisk([uri], [])), threadReactor());
const data = Buffer.alloc(1 << 20);
for (let i = 0; i < data.length; i += 4) data.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i);
await disk.write(0, data);
await disk.flush();
await Promise.all(
  Array.from({ length: 16 }, async (_, i) => {
    const part = await disk.read(i * 65536, 65536);
    assert.ok(data.subarray(i * 65536, (i + 1) * 65536).equals(part), `part ${i}`);
  }),
);
const { size, discard } = disk.info;
if (discard !== undefined) await disk.discard(size - 65536, 65536);
process.stdout.write(String(size));
