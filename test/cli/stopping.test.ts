/** How a server ends: one Ctrl-C in any disguise is one, a hurried end leaves no sockets, a pidfile is nobody else's. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { cleanEnvironment, finished, serve, temporaryFolder, vbdkit } from "../support/vbdkit.ts";

const root = join(import.meta.dirname, "../..");
const terminal = join(root, "test/support/terminal.py");

describe("stopping", { concurrency: 2 }, () => {
  test("one Ctrl-C under npm start, which sends it twice, ends in good order", async () => {
    const npm = ["npm", "--silent", "start", "--", "memory", "1M"];
    const { stdout, code } = await inTerminal(["Ctrl-C stops it.", ...npm]);
    assert.equal(code, 0, stdout);
    const folder = /socket=([^\s']*)\/nbd\.sock/.exec(stdout)?.[1];
    assert.ok(folder !== undefined && !existsSync(folder), folder ?? stdout);
  });

  test("a terminal's Ctrl-C and that of the program that is too old, which passes it on, are one", async () => {
    const older =
      'if (!process.env.VBDKIT_STARTED_BY) Object.defineProperty(process,"versions",{value:{node:"20.1.0"}})';
    const node = [process.execPath, "--import", `data:text/javascript,${older}`];
    const words = [...node, join(root, "bin/vbdkit.js"), "serve", "memory", "1M"];
    const { stdout, code } = await inTerminal(["Ctrl-C stops it.", ...words]);
    assert.equal(code, 0, stdout);
  });

  for (const signal of ["SIGHUP", "SIGINT"] as const) {
    test(`${signal} that comes three times at once ends in good order`, async () => {
      const served = await serve(["memory", "1M"]);
      for (let i = 0; i < 3; i++) served.child.kill(signal);
      const { code, stderr } = await served.outcome;
      assert.deepEqual([code, stderr], [0, ""]);
      assert.ok(!existsSync(served.info.directory));
    });
  }

  test("a long end says what it waits for, and a second Ctrl-C leaves no sockets and no folder", async () => {
    await using folder = await temporaryFolder();
    const socket = folder.file("nbd.sock");
    const pidfile = folder.file("pid");
    const words = ["--filter", "delay", "-U", socket, "-P", pidfile, "memory", "1M", "rdelay=20s"];
    const served = await serve(words);
    const reader = spawn("qemu-io", ["-r", "-f", "raw", "-c", "read 0 512", served.info.uri]);
    const ended = finished(reader);
    let told = "";
    served.child.stderr!.on("data", (text: string) => {
      told += text;
    });
    await sleep(500);
    served.child.kill("SIGINT");
    for (let tries = 0; !told.includes("\n") && tries < 100; tries++) await sleep(50);
    assert.match(told, /^vbdkit: waiting for \d+ requests?; Ctrl-C again ends at once\n$/);
    served.child.kill("SIGINT");
    assert.equal((await served.outcome).code, 130);
    for (const path of [served.info.directory, socket, pidfile]) assert.ok(!existsSync(path), path);
    reader.kill();
    await ended;
  });

  test("a hurried end leaves a folder that was there, and takes those of process domains", async () => {
    await using folder = await temporaryFolder();
    const machine = folder.file("machine");
    await mkdir(machine, { mode: 0o700 });
    writeFileSync(join(machine, "notes.txt"), "mine");
    const words = ["--link", "process", "--machine", machine, "--filter", "delay"];
    const served = await serve([...words, "memory", "1M", "rdelay=4s"]);
    const reader = spawn("qemu-io", ["-r", "-f", "raw", "-c", "read 0 512", served.info.uri]);
    const ended = finished(reader);
    await sleep(500);
    served.child.kill("SIGTERM");
    await sleep(1200);
    served.child.kill("SIGTERM");
    assert.equal((await served.outcome).code, 143);
    assert.equal(spawnSync("ls", [machine], { encoding: "utf8" }).stdout, "notes.txt\n");
    reader.kill();
    await ended;
  });
});

describe("a pidfile", { concurrency: 2 }, () => {
  test("that another live server has is neither overwritten nor removed", async () => {
    await using folder = await temporaryFolder();
    const pidfile = folder.file("pid");
    await using served = await serve(["-P", pidfile, "memory", "1M"]);
    const { stderr, code } = await vbdkit(["serve", "-P", pidfile, "memory", "1M", "--run", ":"]);
    assert.match(stderr, /^vbdkit: .*pid: process \d+ has it and runs; .*\n$/);
    assert.equal(code, 1);
    assert.equal(readFileSync(pidfile, "utf8"), `${served.child.pid}\n`);
  });

  test("that a dead process left is taken over, and one that somebody took is left", async () => {
    await using folder = await temporaryFolder();
    const pidfile = folder.file("pid");
    const { pid } = spawnSync("true");
    writeFileSync(pidfile, `${pid}\n`);
    const run = 'cat "$PIDFILE"; echo 1 > "$PIDFILE"';
    const env = cleanEnvironment({ PIDFILE: pidfile });
    const { stdout, code } = await vbdkit(["serve", "-P", pidfile, "memory", "1M", "--run", run], {
      env,
    });
    assert.equal(code, 0);
    assert.match(stdout, /^\d+\n$/);
    assert.notEqual(stdout, `${pid}\n`);
    assert.equal(readFileSync(pidfile, "utf8"), "1\n");
  });

  test("that is something else is not overwritten", async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("disk.img");
    writeFileSync(image, Buffer.alloc(4096));
    const { stderr } = await vbdkit(["serve", "-P", image, "memory", "1M", "--run", ":"]);
    assert.match(stderr, /^vbdkit: .*disk\.img: is not a pidfile; choose another\n$/);
    assert.deepEqual(readFileSync(image), Buffer.alloc(4096));
  });
});

/** Types Ctrl-C once the command has printed the first word. */
async function inTerminal(
  words: readonly string[],
): Promise<{ stdout: string; code: number | null }> {
  const env = cleanEnvironment();
  const child = spawn("python3", [terminal, ...words], {
    cwd: root,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const { stdout, stderr, code } = await finished(child);
  assert.equal(stderr, "");
  return { stdout, code };
}
