/** `vbdkit copy`: bytes arrive, holes stay holes, and nothing of another size is overwritten. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  cleanEnvironment,
  finished,
  serve,
  start,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");
const env = cleanEnvironment();

/** 64 MiB with 3 MiB of data in it. */
async function sparseImage(path: string): Promise<Buffer> {
  const data = randomBytes(3 * 2 ** 20);
  await using file = await open(path, "w");
  await file.truncate(64 * 2 ** 20);
  await file.write(data, 0, data.length, 2 ** 24);
  return data;
}

describe("copy", { concurrency: 2 }, () => {
  test("makes the destination, the same bytes, as sparse as the source", async () => {
    await using folder = await temporaryFolder();
    await sparseImage(folder.file("a.img"));
    const words = ["copy", "--json", "a.img", "b.img"];
    const { stdout, stderr, code } = await vbdkit(words, { cwd: folder.path });
    assert.equal(stderr, "");
    assert.equal(code, 0);
    const result = JSON.parse(stdout);
    assert.equal(result.size, 64 * 2 ** 20);
    assert.ok(result.copied < 8 * 2 ** 20);
    assert.equal(spawnSync("cmp", [folder.file("a.img"), folder.file("b.img")]).status, 0);
    assert.ok(statSync(folder.file("b.img")).blocks * 512 < 8 * 2 ** 20, "sparse");
  });

  test("writes zeroes over what was there, unless told that the target is zero", async () => {
    await using folder = await temporaryFolder();
    await sparseImage(folder.file("a.img"));
    const old = Buffer.alloc(64 * 2 ** 20, 0xee);
    await writeFile(folder.file("b.img"), old);
    await vbdkit(["copy", "a.img", "b.img"], { cwd: folder.path });
    assert.equal(spawnSync("cmp", [folder.file("a.img"), folder.file("b.img")]).status, 0);
    await writeFile(folder.file("b.img"), old);
    await vbdkit(["copy", "--target-is-zero", "a.img", "b.img"], { cwd: folder.path });
    assert.equal(readFileSync(folder.file("b.img"))[0], 0xee);
  });

  test("copies to and from a running server over NBD", async () => {
    await using folder = await temporaryFolder();
    const data = await sparseImage(folder.file("a.img"));
    await using served = await serve(["memory", "64M"]);
    const there = await vbdkit(["copy", "a.img", served.info.uri], { cwd: folder.path });
    assert.equal(there.stderr, "");
    const back = await vbdkit(["copy", served.info.uri, "b.img"], { cwd: folder.path });
    assert.equal(back.stderr, "");
    const copy = readFileSync(folder.file("b.img"));
    assert.deepEqual(copy.subarray(2 ** 24, 2 ** 24 + data.length), data);
    assert.equal(spawnSync("cmp", [folder.file("a.img"), folder.file("b.img")]).status, 0);
  });

  test("refuses a destination of another size, and allows a larger one when asked", async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file("a.img"), Buffer.alloc(4096, 1));
    await writeFile(folder.file("b.img"), Buffer.alloc(8192, 2));
    const refused = await vbdkit(["copy", "a.img", "b.img"], { cwd: folder.path });
    assert.match(refused.stderr, /^vbdkit: b\.img is 8 KiB.*4 KiB.*--allow-larger.*\n$/);
    assert.equal(refused.code, 1);
    assert.equal((await vbdkit(["copy", "b.img", "a.img"], { cwd: folder.path })).code, 1);
    assert.equal(readFileSync(folder.file("a.img"))[0], 1);
    const words = ["copy", "--allow-larger", "a.img", "b.img"];
    assert.equal((await vbdkit(words, { cwd: folder.path })).code, 0);
    const copy = readFileSync(folder.file("b.img"));
    assert.deepEqual([copy[0], copy[4095], copy[4096]], [1, 1, 2]);
  });

  test("shows progress on a terminal", async () => {
    await using folder = await temporaryFolder();
    await sparseImage(folder.file("a.img"));
    const command = `"${process.execPath}" "${program}" copy a.img b.img`;
    const { stdout, status } = spawnSync("script", ["-qec", command, "/dev/null"], {
      cwd: folder.path,
      encoding: "utf8",
    });
    assert.equal(status, 0);
    assert.match(stdout, /100% \[#{24}\] 64 MiB of 64 MiB/);
  });

  test("writes a disk to standard output, zeroes too", async () => {
    await using folder = await temporaryFolder();
    await sparseImage(folder.file("a.img"));
    const command = `"${process.execPath}" "${program}" copy a.img - | cmp - a.img`;
    const { stdout, stderr, status } = spawnSync("bash", ["-o", "pipefail", "-c", command], {
      cwd: folder.path,
      encoding: "utf8",
    });
    assert.deepEqual([stdout, stderr, status], ["", "", 0]);
    const from = await vbdkit(["copy", "-", "a.img"], { cwd: folder.path });
    assert.match(from.stderr, /^vbdkit: .*copy from a file.*\n$/);
    assert.equal(from.code, 2);
  });

  test("refuses one export under two names", async () => {
    const { stderr, code } = await vbdkit(["copy", "nbd://host/x", "nbd://host:10809/x"]);
    assert.match(stderr, /^vbdkit: nbd:.* would be copied onto itself\n$/);
    assert.equal(code, 1);
  });

  test("reads everything, with a note, from a server that fails to list its extents", async () => {
    await using folder = await temporaryFolder();
    const script = ["get_size=echo 1M", "can_extents=exit 0", "extents=echo EIO >&2; exit 1"];
    const read = "pread=head -c $3 /dev/zero | tr '\\0' x";
    const command = `"${process.execPath}" "${program}" copy "$uri" "${folder.file("b.img")}"`;
    const words = ["-U", "-", "eval", ...script, read, "--run", command];
    const { stderr, status } = spawnSync("nbdkit", words, { encoding: "utf8", env });
    assert.match(stderr, /^vbdkit: note: nbd.* is read whole, holes too: .+$/m);
    assert.equal(status, 0, stderr);
    assert.deepEqual(readFileSync(folder.file("b.img")), Buffer.alloc(2 ** 20, "x"));
  });

  test("ends at a Ctrl-C with its exit code, long before it is done", async () => {
    const child = start(["copy", "pattern 100G", "null 100G"]);
    const outcome = finished(child);
    await sleep(1500);
    child.kill("SIGINT");
    const { stderr, code } = await outcome;
    assert.deepEqual([stderr, code], ["vbdkit: stopped: SIGINT\n", 130]);
  });

  test("leaves no half-made destination behind when the source cannot be opened", async () => {
    await using folder = await temporaryFolder();
    const { code } = await vbdkit(["copy", "missing.img", "b.img"], { cwd: folder.path });
    assert.equal(code, 1);
    assert.throws(() => statSync(folder.file("b.img")));
  });
});
