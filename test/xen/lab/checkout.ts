/**
 * The disk that dom0 mounts at /checkout: what vbdkit needs to run, as the checkout has it when a lab boots, and what Node
 * compiled of it in earlier labs. An image that lies in dom0's page cache, since each of 220 small files that comes over
 * 9p takes an emulated processor tens of milliseconds.
 *
 * Invariant: the files of the compile cache are complete (they are renamed into place), so labs in parallel may share it.
 */
import { execFile } from "node:child_process";
import { existsSync, globSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { UnpackedSystem } from "../../support/debian.ts";

const run = promisify(execFile);
const CHECKOUT = join(import.meta.dirname, "../../..");
const CACHE = ".cache/xen-lab";
const COMPILE_CACHE = `${CACHE}/compile-cache`;
/** A file of the sources is about two of six kilobytes; what other checkouts and versions of Node left adds up. */
const COMPILE_CACHE_LIMIT_FILES = 4000;

const sources = ["bench", "bin", "examples", "package.json", "packaging", "src", "test"];

/** Makes the image, in a new folder beside it. */
export async function packCheckout(system: UnpackedSystem, image: string): Promise<void> {
  const chosen = [...sources, ...productionDependencies()].filter((path) =>
    existsSync(join(CHECKOUT, path)),
  );
  const folder = `${image}.files`;
  await mkdir(join(folder, COMPILE_CACHE), { recursive: true });
  const copying = ["--recursive", "--dereference", "--parents", "--preserve=mode,timestamps"];
  await run("cp", [...copying, ...chosen, folder], { cwd: CHECKOUT });
  await run("cp", [...copying, COMPILE_CACHE, folder], { cwd: CHECKOUT }).catch(() => {
    // There is none yet, or another lab has just emptied it.
  });
  await pack(system, folder, image);
  await rm(folder, { recursive: true });
}

/** Makes a squashfs that is quick to read: nothing in it is compressed, everything is root's. */
export async function pack(system: UnpackedSystem, folder: string, image: string): Promise<void> {
  const [program, ...words] = system.command("usr/bin/mksquashfs");
  const plain = ["-noI", "-noD", "-noF", "-noX", "-all-root", "-no-progress", "-quiet"];
  await run(program, [...words, folder, image, ...plain]);
}

/** Paths of the installed packages that the published one depends on, and of those that these need. */
function productionDependencies(): string[] {
  const paths = new Set<string>();
  const need = (manifest: string): void => {
    const { dependencies, optionalDependencies } = JSON.parse(
      readFileSync(join(CHECKOUT, manifest), "utf8"),
    ) as Record<string, Readonly<Record<string, string>> | undefined>;
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) {
      const path = `node_modules/${name}`;
      // An optional one may be absent; that of another processor always is.
      if (paths.has(path) || !existsSync(join(CHECKOUT, path))) continue;
      paths.add(path);
      need(`${path}/package.json`);
    }
  };
  need("package.json");
  return [...paths];
}

/** Adds to the compile cache what a lab brought back in an archive of tar(1). */
export async function keepCompiled(archive: string): Promise<void> {
  const work = await mkdtemp(join(CHECKOUT, CACHE, ".make-"));
  const kept = join(CHECKOUT, COMPILE_CACHE);
  try {
    await run("tar", ["--extract", "--file", archive, "--directory", work]);
    if (globSync("*/*", { cwd: kept }).length > COMPILE_CACHE_LIMIT_FILES) {
      await rename(kept, join(work, ".old"));
    }
    // Node keeps "VERSION/KEY"; what it had not finished has a longer name.
    for (const path of globSync("*/????????", { cwd: work })) {
      await mkdir(join(kept, path, ".."), { recursive: true });
      await rename(join(work, path), join(kept, path));
    }
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
