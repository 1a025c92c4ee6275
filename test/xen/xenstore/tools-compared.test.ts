/** Debian's xenstore tools with all their options: what they print and how they end, on both daemons. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { unpacked } from "../../support/debian.ts";
import { GenuineXenstored } from "../../support/xenstored.ts";

const lines = [
  "write /a/b one /a/c two",
  "write -s /a/d three",
  "write -R /a/raw \\x01\\n",
  "read /a/b /a/c",
  "read -p /a/b",
  "read -s /a/d",
  "read -R /a/raw",
  "read /a/raw",
  "read /nowhere",
  "list /a",
  "list -p /a",
  "list -s /a",
  "list /nowhere",
  "exists /a /nowhere",
  "exists -s /a/b",
  "exists -p /a",
  "chmod /a/b n0 r1 w2 b3",
  "chmod -u /a/c r1",
  "chmod -r /a b0",
  "chmod -s /a/d n0 r1",
  "chmod /a/b nonsense",
  "chmod /nowhere n0",
  "ls /a",
  "ls -f /a",
  "ls -p /a",
  "ls -f -p -s /a",
  "ls /nowhere",
  "ls",
  "watch -n 1 /a",
  "rm /a/b",
  "rm -s /a/c",
  "rm /nowhere/at/all",
  "rm -t /a/d /a/raw",
  "ls",
];
/** Of xenstore-control: those whose answers do not depend on who counts memory, or describe something. */
const controls = [
  ["check"],
  ["log", "on"],
  ["log", "off"],
  ["log"],
  ["print", "hello"],
  ["quota", "set", "nodes", "900"],
  ["quota", "set", "nonsense", "900"],
  ["quota", "set", "nodes", "0"],
  ["quota", "77"],
  ["nonsense"],
];

function run(file: string, words: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  return new Promise((resolve) => {
    execFile(file, words, { env, encoding: "latin1" }, (error, stdout, stderr) => {
      resolve(`${error?.code ?? 0}\n${stdout}\n${stderr}`);
    });
  });
}

test("each tool prints and ends with our daemon as with Xen's own", {
  timeout: 60_000,
}, async () => {
  await using genuine = await GenuineXenstored.start();
  await using undo = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "vbdkit-tools-"));
  undo.defer(() => rm(scratch, { recursive: true }));
  const ours = undo.use(new XenStoreDaemon({ domainExists: (domid) => domid < 10 }));
  const socket = join(scratch, "socket");
  undo.use(await ours.listen(socket));
  const { path, environment } = await unpacked("xen-utils-4.17");
  const both = async (file: string, words: readonly string[], env: NodeJS.ProcessEnv) =>
    await Promise.all(
      [genuine.socket, socket].map((at) => run(file, words, { ...env, XENSTORED_PATH: at })),
    );
  for (const line of lines) {
    const [tool, ...words] = line.split(" ");
    const [theirs, mine] = await both(`xenstore-${tool}`, words, process.env);
    assert.equal(mine, theirs, line);
  }
  const control = path("usr/lib/xen-4.17/bin/xenstore-control");
  for (const words of controls) {
    // With what is refused, it prints the help, which names the commands that there are.
    const answers = await both(control, words, environment);
    const [theirs, mine] = answers.map((text) => text.replace(/(Valid commands are:).*/s, "$1"));
    assert.equal(mine, theirs, words.join(" "));
  }
  const [, help] = await both(control, ["help"], environment);
  assert.match(help ?? "", /^0\ncheck\t/);
  const [, quota] = await both(control, ["quota"], environment);
  assert.match(quota ?? "", /^nodes {12}: {6}900 /m);
  const [, update] = await both(control, ["live-update", scratch], environment);
  assert.match(update ?? "", /^3\n.*\nThis xenstored cannot update itself[^\n]*\n/s);
});
