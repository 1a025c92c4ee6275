/** Sockets that somebody else opened (sd_listen_fds(3)), with libnbd's tools as the ones who do. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { takeInheritedSockets } from "../../src/cli/socket-activation.ts";
import { cleanEnvironment, temporaryFolder, vbdkit } from "../support/vbdkit.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");
const served = (...words: string[]) => ["[", process.execPath, program, "serve", ...words, "]"];
const run = (command: string, words: string[]) =>
  spawnSync(command, words, { encoding: "utf8", env: cleanEnvironment(), timeout: 30_000 });

describe("a server that its client starts", { concurrency: 2 }, () => {
  test("serves on the client's socket and prints nothing of its own", () => {
    const { stdout, stderr, status } = run("nbdinfo", ["--size", "--", ...served("memory", "1M")]);
    assert.equal(stderr, "");
    assert.equal(stdout, "1048576\n");
    assert.equal(status, 0);
  });

  test("leaves the pipe of its client as it was", () => {
    const copy = `nbdcopy -- ${served("pattern", "16M").join(" ")} - | wc -c`;
    const { stdout, stderr } = run("sh", ["-c", copy]);
    assert.equal(stderr, "");
    assert.equal(stdout.trim(), String(2 ** 24));
  });

  test("knows the path of the socket", async () => {
    await using folder = await temporaryFolder();
    const script = `
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])`;
    const command = 'nbdinfo --size "$uri"; echo "$unixsocket"; printenv LISTEN_FDS || echo unset';
    const words = ["-c", script, folder.file("s"), process.execPath, program, "serve", "memory"];
    const { stdout, stderr } = run("python3", [...words, "1M", "--run", command]);
    assert.equal(stderr, "");
    assert.equal(stdout, `1048576\n${folder.file("s")}\nunset\n`);
  });

  test("starts by the command of our systemd unit", async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file("data.img"), new Uint8Array(2 ** 20));
    const unit = readFileSync(
      new URL("../../packaging/systemd/vbdkit@.service", import.meta.url),
      "utf8",
    );
    const command = /^ExecStart=\/usr\/bin\/env vbdkit serve (.*)$/m.exec(unit)![1]!;
    const words = command
      .replace("/run/vbdkit/%i", folder.file("machine"))
      .replace("/var/lib/vbdkit/%i.img", folder.file("data.img"));
    const { stdout, stderr } = run("nbdinfo", ["--size", "--", ...served(...words.split(" "))]);
    assert.equal(stderr, "");
    assert.equal(stdout, "1048576\n");
  });

  test("listens nowhere else", () => {
    const command = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"';
    const words = [process.execPath, program, "serve", "--unix", "-", "memory", "1M"];
    const { stderr, status } = run("sh", ["-c", command, ...words]);
    assert.match(stderr, /^vbdkit: the socket is the one in LISTEN_FDS: .*\n$/);
    assert.equal(status, 2);
  });

  test("takes no variables that were for another process", async () => {
    const env = cleanEnvironment({ LISTEN_PID: "1", LISTEN_FDS: "1" });
    const words = ["serve", "memory", "1M", "--run", 'nbdinfo --size "$uri"'];
    assert.equal((await vbdkit(words, { env })).stdout, "1048576\n");
  });
});

test("descriptors begin at 3, and the variables are taken away", () => {
  const environment = { LISTEN_PID: "7", LISTEN_FDS: "2", LISTEN_FDNAMES: "a:b", HOME: "/" };
  assert.deepEqual(takeInheritedSockets(environment, 7), [3, 4]);
  assert.deepEqual(environment, { HOME: "/" });
  assert.deepEqual(takeInheritedSockets({ LISTEN_PID: "7", LISTEN_FDS: "2" }, 8), []);
  for (const LISTEN_FDS of ["x", "-1", "1e9", "65"]) {
    assert.throws(() => takeInheritedSockets({ LISTEN_PID: "7", LISTEN_FDS }, 7), /LISTEN_FDS=/);
  }
});
