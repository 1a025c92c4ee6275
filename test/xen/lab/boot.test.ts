/** The lab itself: Xen, dom0, the checkout and Node in it, commands and their ends. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Lab } from "./lab.ts";

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("Xen says which it is, and knows dom0 by its name", async () => {
  assert.match(await lab.check("xl info"), /^xen_version\s*: 4\.17\./m);
  assert.equal(await lab.check("xenstore-read /local/domain/0/name"), "Domain-0\n");
});

test("Node 26 runs the checkout in dom0", async () => {
  assert.equal(await lab.check("vbdkit --version", { timeout: 180 }), "0.1.0\n");
  assert.match(await lab.check("node --version"), /^v26\./);
});

test("a command has a status, what it printed and what it complained of", async () => {
  const outcome = await lab.run("echo one; echo two >&2; exit 3");
  assert.deepEqual(outcome, { status: 3, stdout: "one\n", stderr: "two\n" });
  await assert.rejects(lab.check("echo three; exit 4"), /status 4 of: echo three; exit 4\nthree\n/);
});

test("a command runs beside others until it ends or is killed", async () => {
  await lab.check("mkfifo /tmp/words");
  await using waiting = await lab.start(
    "read -r word </tmp/words; echo $word; read -r word </tmp/words",
  );
  await lab.check("echo hello >/tmp/words");
  await using forever = await lab.start("sleep 1000 & wait");
  forever.signal("KILL");
  assert.equal((await forever.outcome).status, 128 + 9);
  waiting.signal("TERM");
  assert.deepEqual(await waiting.outcome, { status: 128 + 15, stdout: "hello\n", stderr: "" });
});

test("a command that takes too long is killed, and the error shows the console", async () => {
  await assert.rejects(lab.run("sleep 1000 & wait", { timeout: 2 }), (error: Error) => {
    assert.match(error.message, /had not finished after 2 s while running: sleep 1000/);
    assert.match(error.message, /The end of its console:\n(.*\n)+/);
    return true;
  });
  assert.equal(await lab.check("pidof sleep || echo none"), "none\n");
});

test("what Node compiled is there for the next lab", async () => {
  const marker = `made by ${process.pid} at ${Date.now()}`;
  const script = `echo 'export default "${marker}"; console.log("told")' >/tmp/told.mjs; node /tmp/told.mjs`;
  assert.equal(await lab.check(script), "told\n");
  // The key is of the file's path; the content has a checksum of the source.
  const find = "cd /run/compile-cache/new; ls -t */* | head -n 1";
  const entry = (await lab.check(find)).trim();
  const compiled = join(import.meta.dirname, "../../../.cache/xen-lab/compile-cache", entry);
  const before = existsSync(compiled) ? readFileSync(compiled) : Buffer.alloc(0);
  await lab[Symbol.asyncDispose]();
  assert.notDeepEqual(readFileSync(compiled), before);
  assert.ok(!existsSync(lab.folder));
});
