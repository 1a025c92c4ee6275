/** What was flushed is on the disk: under SIGTERM, under SIGKILL, under a power cut; and the kernel was asked to sync. */
import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, rmdir, stat, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { finished, serve, type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";

const run = promisify(execFile);
const MIB = 2 ** 20;

/** A client that writes the blocks of the disk round after round, each filled with the number of the round, and
 * prints the number of a round once its flush (or its last write with FUA) has been answered. */
const writer = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
fua = sys.argv[2] == "fua"
size = h.get_size()
for round in range(1, 256):
    for offset in range(0, size, 65536):
        h.pwrite(bytes([round]) * 65536, offset, nbd.CMD_FLAG_FUA if fua else 0)
    if not fua:
        h.flush()
    print(round, flush=True)
`;

async function flushedRounds(
  signal: NodeJS.Signals,
  link: string,
  mode: "flush" | "fua",
): Promise<void> {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  await writeFile(image, Buffer.alloc(2 * MIB));
  const served = await serve(["--link", link, image]);
  const client: ChildProcess = spawn("/usr/bin/python3", ["-c", writer, served.info.uri, mode], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const outcome = finished(client);
  let seen = "";
  client.stdout!.on("data", (text: string) => {
    seen += text;
  });
  for (let tries = 0; seen.split("\n").length < 4; tries++) {
    assert.ok(tries < 400, `the writer is stuck after: ${seen}`);
    await sleep(25);
  }
  served.child.kill(signal);
  const { code } = await served.outcome;
  if (signal === "SIGTERM") assert.equal(code, 0);
  // Nobody tidies up after SIGKILL.
  else await rm(served.info.directory, { recursive: true });
  const { stdout } = await outcome;
  const flushed = Number(stdout.trim().split("\n").at(-1));
  assert.ok(flushed >= 3);
  // Every block holds the last flushed round, or the one after it that was being written.
  const bytes = await readFile(image);
  for (let offset = 0; offset < bytes.length; offset += 65536) {
    const round = bytes[offset]!;
    assert.ok(
      round === flushed || round === flushed + 1,
      `round ${round} at ${offset}, after round ${flushed} was flushed`,
    );
    assert.ok(bytes.subarray(offset, offset + 65536).every((byte) => byte === round));
  }
}

describe("what was answered as flushed is in the image", () => {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    for (const link of ["thread", "worker", "process"]) {
      test(`after ${signal} under write load, with the backend in a ${link}`, async () => {
        await flushedRounds(signal, link, "flush");
      });
    }
    test(`after ${signal}, with force-unit-access writes`, async () => {
      await flushedRounds(signal, "thread", "fua");
    });
  }
});

/** An ext4 file system of its own, whose syncs the kernel's tracer can tell from all others. */
async function ext4(folder: TemporaryFolder): Promise<{ path: string } & AsyncDisposable> {
  const path = folder.file("ext4");
  await run("truncate", ["-s", "32M", folder.file("ext4.img")]);
  await run("mkfs.ext4", ["-q", folder.file("ext4.img")]);
  await mkdir(path);
  await run("mount", ["-o", "loop", folder.file("ext4.img"), path]);
  return {
    path,
    [Symbol.asyncDispose]: async () => void (await run("umount", [path])),
  };
}

const TRACING = "/sys/kernel/tracing";

/** Counts the syncs of one file that reach the file system, whichever system call or ring brought them. */
async function traceSyncs(inode: number): Promise<{ count(): Promise<number> } & AsyncDisposable> {
  if (!existsSync(`${TRACING}/instances`)) await run("mount", ["-t", "tracefs", "none", TRACING]);
  const instance = `${TRACING}/instances/vbdkit-${process.pid}-${inode}`;
  await mkdir(instance);
  const event = `${instance}/events/ext4/ext4_sync_file_enter`;
  await writeFile(`${event}/filter`, `ino == ${inode}`);
  await writeFile(`${event}/enable`, "1");
  return {
    count: async () =>
      (await readFile(`${instance}/trace`, "utf8")).match(/ext4_sync_file_enter:/g)?.length ?? 0,
    [Symbol.asyncDispose]: () => rmdir(instance),
  };
}

describe("every flush and every force-unit-access write is a sync of the file system", () => {
  for (const engine of ["io_uring", "pread", "libuv"]) {
    test(`with the ${engine} engine`, async () => {
      await using folder = await temporaryFolder();
      await using mounted = await ext4(folder);
      const image = `${mounted.path}/a.img`;
      await writeFile(image, Buffer.alloc(MIB));
      await using served = await serve(["--engine", engine, image]);
      await using syncs = await traceSyncs((await stat(image)).ino);
      const client = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(5):
    h.pwrite(b"a" * 4096, i * 4096)
    h.flush()
for i in range(7):
    h.pwrite(b"b" * 4096, i * 4096, nbd.CMD_FLAG_FUA)
h.zero(65536, 65536, nbd.CMD_FLAG_FUA)
`;
      await run("/usr/bin/python3", ["-c", client, served.info.uri]);
      const count = await syncs.count();
      assert.ok(count >= 13, `${count} syncs for 5 flushes and 8 writes with FUA`);
    });
  }

  test("strace sees them as system calls, where the engine makes system calls", async () => {
    for (const engine of ["pread", "libuv"]) {
      await using folder = await temporaryFolder();
      const image = folder.file("a.img");
      await writeFile(image, Buffer.alloc(MIB));
      await using served = await serve(["--engine", engine, image]);
      const log = folder.file("strace.log");
      const trace = spawn("strace", [
        ...["-f", "-e", "trace=fsync,fdatasync,pwritev2", "-o", log],
        ...["-p", String(served.child.pid)],
      ]);
      const traced = finished(trace);
      await sleep(500);
      const commands = ["write 0 4k", "flush", "write 4k 4k", "flush", "write -f 8k 4k"];
      const script = commands.flatMap((command) => ["-c", command]);
      await run("qemu-io", ["-f", "raw", ...script, served.info.uri]);
      trace.kill("SIGINT");
      await traced;
      const lines = await readFile(log, "utf8");
      const syncs = lines.match(/\bf(data)?sync\(|RWF_D?SYNC/g) ?? [];
      assert.ok(syncs.length >= 3, lines);
    }
  });
});
