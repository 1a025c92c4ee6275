/** `vbdkit test` as a person runs it: outcomes, the last line, exit codes, and what it refuses to destroy. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder, vbdkit } from "../support/vbdkit.ts";

test("vbdkit test runs the suite of stores and says how many passed", async () => {
  const { code, stdout } = await vbdkit(["test", "memory", "4M"]);
  assert.match(stdout, /✔ memory 4M /);
  assert.match(stdout, /\n\d+ passed, 0 failed\n$/);
  assert.equal(code, 0);
});

for (const [what, sentence] of [
  ["backend", /serves Linux 2\.6\.23 blkfront/],
  ["frontend", /is a disk before QEMU xen-block/],
] as const) {
  test(`vbdkit test ${what} runs it behind a ring, as TAP where asked`, async () => {
    const { code, stdout } = await vbdkit(["test", what, "--reporter", "tap", "memory", "4M"]);
    assert.match(stdout, sentence);
    assert.match(stdout, /^TAP version 13\n/);
    assert.match(stdout, /\n\d+ passed, 0 failed\n$/);
    assert.equal(code, 0);
  });
}

test("a disk that holds something is refused, and left alone, unless it may be destroyed", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  const bytes = Buffer.alloc(2 ** 21);
  bytes.write("precious", 1000);
  await writeFile(image, bytes);
  const refused = await vbdkit(["test", image]);
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /^vbdkit: the disk holds data .*--overwrite/);
  assert.deepEqual(await readFile(image), bytes);
  const allowed = await vbdkit(["test", "--overwrite", image]);
  assert.match(allowed.stdout, /\n\d+ passed, 0 failed\n$/);
  assert.equal(allowed.code, 0);
});

test("a disk that fails the suite fails the command", async () => {
  const { code, stdout } = await vbdkit([
    ...["test", "--filter", "error", "memory", "4M", "error-flush-rate=100%"],
  ]);
  assert.match(stdout, /\n\d+ passed, [1-9]\d* failed\n$/);
  assert.equal(code, 1);
});

test("no disk, or one that is too small, is told in one line", async () => {
  for (const words of [["test"], ["test", "backend"], ["test", "memory", "32K"]]) {
    const { code, stderr } = await vbdkit(words);
    assert.equal(code, 2);
    assert.match(stderr, /^vbdkit: [^\n]+\n$/);
  }
});
