/** A real file system of ten thousand files on our disk: nbdfuse makes a file of it, a loop device a disk of that. */
import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { finished, serve, temporaryFolder } from "../support/vbdkit.ts";

const run = promisify(execFile);
const FOLDERS = 100;
const FILES_PER_FOLDER = 100;

/** A tree whose contents are its names, in sizes from nothing to 40 KiB. */
async function makeTree(root: string): Promise<void> {
  for (let folder = 0; folder < FOLDERS; folder++) {
    const path = join(root, `folder-${folder}`);
    await mkdir(path, { recursive: true });
    const files = Array.from({ length: FILES_PER_FOLDER }, (_, file) => {
      const line = `${folder}/${file}\n`;
      return writeFile(join(path, `file-${file}`), line.repeat((folder * file * 7) % 6000));
    });
    await Promise.all(files);
  }
}

/** One hash over all names and contents. */
async function treeHash(root: string): Promise<string> {
  const hash = createHash("sha256");
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  assert.equal(files.length, FOLDERS * FILES_PER_FOLDER);
  for (const file of files) hash.update(file.slice(root.length)).update(await readFile(file));
  return hash.digest("hex");
}

async function appears(path: string): Promise<void> {
  for (let tries = 0; !existsSync(path); tries++) {
    assert.ok(tries < 200, `${path} does not appear`);
    await sleep(50);
  }
}

/** Mounts the export as the file `mnt/nbd`; disposal unmounts. */
async function nbdfuse(uri: string, mountPoint: string): Promise<AsyncDisposable> {
  await mkdir(mountPoint);
  const child: ChildProcess = spawn("nbdfuse", [mountPoint, uri], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const outcome = finished(child);
  await appears(join(mountPoint, "nbd"));
  return {
    async [Symbol.asyncDispose]() {
      await run("umount", [mountPoint]);
      await outcome;
    },
  };
}

test("ten thousand files written through the ring are there, and e2fsck finds nothing to mend", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  const source = folder.file("tree");
  await makeTree(source);
  const expected = await treeHash(source);
  await writeFile(image, "");
  await run("truncate", ["-s", "512M", image]);
  {
    await using served = await serve([image]);
    await using _fuse = await nbdfuse(served.info.uri, folder.file("fuse"));
    await using ends = new AsyncDisposableStack();
    const losetup = await run("losetup", ["-f", "--show", join(folder.file("fuse"), "nbd")]);
    const device = losetup.stdout.trim();
    ends.defer(async () => void (await run("losetup", ["-d", device])));
    await run("mkfs.ext4", ["-q", device]);
    const mountPoint = folder.file("mnt");
    await mkdir(mountPoint);
    {
      await using mounted = new AsyncDisposableStack();
      await run("mount", [device, mountPoint]);
      mounted.defer(async () => void (await run("umount", [mountPoint])));
      await run("cp", ["-a", source, mountPoint]);
      assert.equal(await treeHash(join(mountPoint, "tree")), expected);
    }
    await run("e2fsck", ["-fn", device]);
  }
  // The server has gone; what it left is a file system like any other.
  await run("e2fsck", ["-fn", image]);
  const mountPoint = folder.file("mnt");
  await using mounted = new AsyncDisposableStack();
  await run("mount", ["-o", "loop,ro", image, mountPoint]);
  mounted.defer(async () => void (await run("umount", [mountPoint])));
  assert.equal(await treeHash(join(mountPoint, "tree")), expected);
});
