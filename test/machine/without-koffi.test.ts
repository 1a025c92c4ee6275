/** Where foreign calls are missing, everything that does not need them is as it is with them: the suites once more. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { cleanEnvironment, finished, serve, temporaryFolder, vbdkit } from "../support/vbdkit.ts";

const env = cleanEnvironment({ VBDKIT_NO_FFI: "1" });
const root = join(import.meta.dirname, "../..");

for (const suite of [
  "test/store/suite.test.ts",
  "test/store/file.test.ts",
  "test/block/backend.test.ts",
  "test/block/frontend.test.ts",
  "test/nbd/server.test.ts",
  "test/machine/thread-and-worker.ts",
]) {
  test(`${suite} passes without koffi`, async () => {
    const words = ["--conditions=vbdkit-source", "--test", "--test-reporter=tap", suite];
    const child = spawn(process.execPath, words, {
      cwd: root,
      env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    const { code, stdout } = await finished(child);
    const failures = stdout.match(/^\s*not ok .*$/gm) ?? [];
    assert.equal(code, 0, failures.join("\n"));
    assert.match(stdout, /^# pass [1-9]/m);
    assert.match(stdout, /^# skipped 0$/m);
  });
}

test("serving a file says in one line what is not offered, and uses libuv", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  await writeFile(image, new Uint8Array(65536));
  const served = await serve([image], { env });
  const [disk] = served.info.disks;
  assert.equal(disk?.attachment.backend.store.engine, "libuv");
  assert.equal(disk?.attachment.negotiated.discard, false);
  served.child.kill("SIGTERM");
  const { stderr } = await served.outcome;
  assert.match(stderr, /^vbdkit: .*neither locks nor holes.*\n$/);
});

test("a process link is refused in one line, before anything is started", async () => {
  const { code, stderr } = await vbdkit(["serve", "--link", "process", "memory", "1M"], { env });
  assert.notEqual(code, 0);
  assert.match(stderr, /^vbdkit: .*foreign calls.*\n$/);
});
