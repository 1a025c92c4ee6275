/** A disk image served through the whole split driver, and judged by tools that know nothing of it. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { open, readFile, stat, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { promisify } from "node:util";
import { Disk, openNbdStore, threadReactor } from "../../src/index.ts";
import { serve, type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";

const run = promisify(execFile);
const MIB = 2 ** 20;

/** 64 MiB: data at both ends and in the middle, holes between. */
async function sparseImage(folder: TemporaryFolder, name: string): Promise<string> {
  const path = folder.file(name);
  await using file = await open(path, "w");
  await file.truncate(64 * MIB);
  for (const offset of [0, 20 * MIB, 63 * MIB]) {
    await file.write(randomBytes(MIB), 0, MIB, offset);
  }
  return path;
}

for (const link of ["thread", "worker", "process"]) {
  describe(`behind the ring, with the backend in a ${link}`, () => {
    test("nbdinfo finds nothing to warn about, and the map of the image", async () => {
      await using folder = await temporaryFolder();
      const image = await sparseImage(folder, "a.img");
      await using served = await serve(["--link", link, image]);
      const { stdout, stderr } = await run("nbdinfo", [served.info.uri]);
      assert.equal(stderr, "");
      assert.match(stdout, /export-size: 67108864 \(64M\)/);
      for (const can of ["flush", "fua", "trim", "zero", "multi_conn", "df"]) {
        assert.match(stdout, new RegExp(`can_${can}: true`), can);
      }
      const map = await run("nbdinfo", ["--map", "--json", served.info.uri]);
      const extents = JSON.parse(map.stdout) as { offset: number; length: number; type: number }[];
      const data = extents.filter((extent) => extent.type === 0);
      assert.deepEqual(
        data.map(({ offset, length }) => [offset / MIB, length / MIB]),
        [
          [0, 1],
          [20, 1],
          [63, 1],
        ],
      );
    });

    test("nbdcopy both ways, and qemu-img compare, find the image as it is", async () => {
      await using folder = await temporaryFolder();
      const image = await sparseImage(folder, "a.img");
      await using served = await serve(["--link", link, image]);
      const { uri } = served.info;
      const copy = folder.file("copy.img");
      await run("nbdcopy", [uri, copy]);
      assert.ok((await readFile(copy)).equals(await readFile(image)));
      await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, copy]);

      const other = await sparseImage(folder, "b.img");
      await run("nbdcopy", [other, uri]);
      await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, other]);
      assert.ok((await readFile(image)).equals(await readFile(other)), "and it is in the image");
      assert.ok((await stat(image)).blocks * 512 < 8 * MIB, "whose holes are holes");
    });

    for (const engine of ["io_uring", "pread", "libuv"]) {
      test(`fio's verified writes and its trims leave no error, with the ${engine} engine`, async () => {
        await using folder = await temporaryFolder();
        const image = folder.file("fio.img");
        await writeFile(image, "");
        await run("truncate", ["-s", "64M", image]);
        await using served = await serve(["--link", link, "--engine", engine, image]);
        assert.equal(served.info.disks[0]?.attachment.backend.store.engine, engine);
        // The trimmed half is full before: a trim that does nothing would be seen.
        await run("qemu-io", ["-f", "raw", "-c", "write -P 0xaa 32M 32M", served.info.uri]);
        const job = folder.file("job.fio");
        await writeFile(job, fioJob(served.info.uri));
        const { stdout } = await run("fio", ["--output-format=json", job], { cwd: folder.path });
        const report = JSON.parse(stdout.slice(stdout.indexOf("{"))) as {
          jobs: { jobname: string; error: number; trim: { total_ios: number } }[];
        };
        for (const { jobname, error } of report.jobs) assert.equal(error, 0, jobname);
        assert.ok(report.jobs.some(({ trim }) => trim.total_ios === 256));
        await trimsReadBack(served.info.uri);
      });
    }
  });
}

/** Through a client of our own: a quarter to a half of the second 32 MiB was trimmed, in blocks of 64 KiB, and reads as
 * zeroes; the rest is as it was; and zeroes that are written read as zeroes. */
async function trimsReadBack(uri: string): Promise<void> {
  const reactor = threadReactor();
  await using disk = new Disk(await openNbdStore({ reactor, uri }), reactor);
  let trimmed = 0;
  for (let block = 0; block < 512; block++) {
    const bytes = await disk.read(32 * MIB + block * 65536, 65536);
    const value = bytes[0]!;
    assert.ok(value === 0 || value === 0xaa, `${value} in block ${block}`);
    assert.ok(bytes.every((byte) => byte === value));
    if (value === 0) trimmed++;
  }
  assert.ok(trimmed > 128 && trimmed <= 256, `${trimmed} blocks of 512 trimmed`);
  await disk.writeZeroes(40 * MIB, 8 * MIB);
  assert.ok((await disk.read(40 * MIB, 8 * MIB)).every((byte) => byte === 0));
}

/** Random sizes with checksums on the first half, trims on the second: one job that does both reports false errors. */
function fioJob(uri: string): string {
  return `[global]
ioengine=nbd
uri=${uri}
iodepth=32
randseed=20

[verified]
rw=randrw
bsrange=512-1M
blockalign=512
size=32M
verify=crc32c
verify_fatal=1
do_verify=1

[trims]
rw=randtrim
bs=64k
offset=32M
size=32M
io_size=16M
`;
}

test("a large random write survives, bit for bit, whatever the ring looks like", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("ring.img");
  const data = folder.file("data");
  await writeFile(data, randomBytes(24 * MIB));
  for (const ring of [
    ["--max-ring-page-order", "0", "--max-indirect-segments", "0", "--no-persistent"],
    ["--max-ring-page-order", "4", "--max-indirect-segments", "256"],
    ["--protocol", "x86_32-abi", "--no-discard"],
  ]) {
    await writeFile(image, Buffer.alloc(24 * MIB, 0x11));
    await using served = await serve([...ring, image]);
    await run("nbdcopy", [data, served.info.uri]);
    await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", served.info.uri, data]);
    assert.ok((await readFile(image)).equals(await readFile(data)), ring.join(" "));
  }
});
