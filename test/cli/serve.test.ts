/** `vbdkit serve` as a person uses it: what it prints works, it ends in good order, it ends with its parent. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { ServerInfo } from "../../src/cli/server-info.ts";
import {
  cleanEnvironment,
  finished,
  serve,
  start,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");

describe("serve", { concurrency: 2 }, () => {
  test("--run has the URI, and its exit code is ours", async () => {
    const { stdout, code } = await vbdkit([
      ...["serve", "memory", "1M", "--run"],
      'nbdinfo --size "$uri"; test -S "$unixsocket" -a -S "$XENSTORED_PATH"; exit 7',
    ]);
    assert.equal(stdout, "1048576\n");
    assert.equal(code, 7);
  });

  test("the socket is in a folder of mode 0700, and both are gone afterwards", async () => {
    let directory: string;
    {
      await using served = await serve(["memory", "1M"]);
      directory = served.info.directory;
      assert.equal(statSync(directory).mode & 0o777, 0o700);
      assert.ok(served.info.uri.includes(directory));
    }
    assert.ok(!existsSync(directory));
  });

  test("what it prints to try works as pasted", async () => {
    await using folder = await temporaryFolder();
    const child = start(["serve", "memory", "1M"]);
    const text = await printed(child, "Ctrl-C");
    const commands = [...text.matchAll(/^ {2}(.*?) +# /gm)].map((match) => match[1]!);
    assert.equal(commands.length, 6);
    for (const command of commands) {
      const { status, stdout, stderr } = spawnSync("sh", ["-c", command], {
        cwd: folder.path,
        encoding: "utf8",
        env: cleanEnvironment(),
      });
      assert.equal(status, 0, `${command}: ${stdout}${stderr}`);
    }
    assert.equal(statSync(folder.file("copy.img")).size, 2 ** 20);
    child.kill("SIGTERM");
    const { code, stderr } = await finished(child);
    assert.equal(stderr, "");
    assert.equal(code, 0);
  });

  test("without a disk it makes a sparse disk.img of 1 GiB, and never touches one that is there", async () => {
    await using folder = await temporaryFolder();
    const words = ["serve", "--run", 'nbdinfo --size "$uri"'];
    assert.equal((await vbdkit(words, { cwd: folder.path })).stdout, `${2 ** 30}\n`);
    const made = statSync(folder.file("disk.img"));
    assert.equal(made.size, 2 ** 30);
    assert.ok(made.blocks * 512 < 2 ** 20, "sparse");
    await truncate(folder.file("disk.img"), 4096);
    assert.equal((await vbdkit(words, { cwd: folder.path })).stdout, "4096\n");
  });

  test("a named image that is missing is not made", async () => {
    await using folder = await temporaryFolder();
    const { code } = await vbdkit(["serve", "disk.img"], { cwd: folder.path });
    assert.equal(code, 1);
    assert.ok(!existsSync(folder.file("disk.img")));
  });

  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    test(`${signal} ends it in good order, with what was written on the disk`, async () => {
      await using folder = await temporaryFolder();
      const image = folder.file("a.img");
      await writeFile(image, Buffer.alloc(2 ** 20));
      const pidfile = folder.file("pid");
      const served = await serve(["-P", pidfile, image]);
      assert.equal(Number(readFileSync(pidfile, "utf8")), served.child.pid);
      const { status } = spawnSync("qemu-io", [
        ...["-f", "raw", "-c", "write -P 0x5a 4096 8192", served.info.uri],
      ]);
      assert.equal(status, 0);
      served.child.kill(signal);
      const { code, stderr } = await served.outcome;
      assert.equal(stderr, "");
      assert.equal(code, 0);
      assert.ok(!existsSync(pidfile));
      assert.deepEqual(readFileSync(image).subarray(4096, 12288), Buffer.alloc(8192, 0x5a));
    });
  }

  test("--readonly refuses writing", async () => {
    await using served = await serve(["-r", "memory", "1M"]);
    assert.equal(spawnSync("nbdinfo", ["--is", "read-only", served.info.uri]).status, 0);
  });

  test("a TCP port and an export name are those of the URI", async () => {
    await using served = await serve(["-p", "0", "-e", "gold", "memory", "1M"]);
    assert.match(served.info.uri, /^nbd:\/\/127\.0\.0\.1:\d+\/gold$/);
    assert.equal(spawnSync("nbdinfo", [served.info.uri]).status, 0);
  });

  test("several disks have a vdev and an export each", async () => {
    await using served = await serve(["memory", "1M", "memory", "2M"]);
    assert.deepEqual(
      served.info.disks.map(({ vdev, store }) => [vdev, store.size]),
      [
        ["xvda", 2 ** 20],
        ["xvdb", 2 ** 21],
      ],
    );
    for (const { uri, store } of served.info.disks) {
      const { stdout } = spawnSync("nbdinfo", ["--size", uri], { encoding: "utf8" });
      assert.equal(stdout, `${store.size}\n`);
    }
  });

  for (const link of ["worker", "process"]) {
    test(`the backend may live in a ${link}`, async () => {
      const { stdout, stderr, code } = await vbdkit([
        ...["serve", "--link", link, "memory", "1M", "--run", 'nbdcopy "$uri" - | wc -c'],
      ]);
      assert.equal(stderr, "");
      assert.equal(stdout.trim(), "1048576");
      assert.equal(code, 0);
    });
  }

  test("ring options reach the ring", async () => {
    const words = ["--max-ring-page-order", "0", "--max-indirect-segments", "0", "--no-persistent"];
    await using served = await serve([...words, "memory", "1M"]);
    const { negotiated } = served.info.disks[0]!.attachment;
    assert.equal(negotiated.ringPages, 1);
    assert.equal(negotiated.maxSegments, 11);
    assert.equal(negotiated.persistent, false);
  });

  test("a filter stands before the disk", async () => {
    await using served = await serve(["--filter", "delay", "memory", "1M", "rdelay=200ms"]);
    const began = performance.now();
    spawnSync("qemu-io", ["-r", "-f", "raw", "-c", "read 0 4k", served.info.uri]);
    assert.ok(performance.now() - began > 190);
  });

  test("it ends with its parent when asked to", async () => {
    const { pid } = await orphan(["--exit-with-parent"]);
    await gone(pid);
  });

  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    test(`npm start leaves no server behind when npm gets ${signal}`, async () => {
      const words = ["--silent", "start", "--", "--json", "memory", "1M"];
      const npm = spawn("npm", words, {
        cwd: join(import.meta.dirname, "../.."),
        env: cleanEnvironment(),
        stdio: ["ignore", "pipe", "inherit"],
      });
      const text = await printed(npm, "\n}\n");
      npm.kill(signal);
      await gone((JSON.parse(text) as ServerInfo).pid);
    });
  }

  test("it ends with npm's shell without being asked", async () => {
    const { pid } = await orphan([], { npm_lifecycle_event: "start" });
    await gone(pid);
  });
});

/** Starts a server from a shell that is then killed with SIGKILL, as a careless supervisor does. */
async function orphan(words: string[], environment = {}): Promise<{ pid: number }> {
  const command = [process.execPath, program, "serve", ...words, "memory", "1M"].join(" ");
  const shell = spawn("sh", ["-c", `${command} & echo $!; wait`], {
    env: cleanEnvironment(environment),
    stdio: ["ignore", "pipe", "inherit"],
  });
  const text = await printed(shell, "Ctrl-C");
  shell.kill("SIGKILL");
  return { pid: Number.parseInt(text, 10) };
}

/** What a child has printed once `end` is among it. */
async function printed(child: ChildProcess, end: string): Promise<string> {
  let text = "";
  await new Promise<void>((resolve, reject) => {
    child.once("close", (code) => reject(new Error(`ended with ${code} after: ${text}`)));
    child.stdout!.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (text.includes(end)) resolve();
    });
  });
  return text;
}

async function gone(pid: number): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    if (!existsSync(`/proc/${pid}`)) return;
    await sleep(100);
  }
  process.kill(pid, "SIGKILL");
  assert.fail(`process ${pid} outlives its parent`);
}
