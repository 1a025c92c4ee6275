/**
 * Debian packages that tests look at but the machine must not get: QEMU's Xen binary, Xen's own tools. Installing
 * them would start daemons or change how the machine boots, so they are fetched and unpacked into .cache/debian/.
 *
 * Invariant: a folder there is complete or absent (it is renamed into place), so tests in parallel may share it.
 */
import { execFile } from "node:child_process";
import { existsSync, globSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const CACHE = join(import.meta.dirname, "../../.cache/debian");
/** Packages that tests ask for; scripts/tools.ts fetches them before the tests begin. */
export const unpackedPackages = ["prometheus", "qemu-system-xen", "xen-utils-4.17"] as const;

/** A package with the libraries it needs, laid out as under `/`. */
export interface UnpackedPackage {
  /** What would be `/`. */
  readonly root: string;
  /** For LD_LIBRARY_PATH. */
  readonly libraryPath: string;
  /** The environment of this process with that library path. */
  readonly environment: NodeJS.ProcessEnv;
  /** The file under root: `path("usr/bin/xl")`. Throws when the package does not have it. */
  path(name: string): string;
}

export async function unpacked(name: string): Promise<UnpackedPackage> {
  const root = join(CACHE, name);
  if (!existsSync(root)) await fetch(name, root);
  const libraryPath = globSync("{usr/,}lib/{*-linux-gnu*,xen-*/lib,xen-*/lib/*}/", { cwd: root })
    .concat("lib", "usr/lib")
    .map((folder) => join(root, folder))
    .join(":");
  return {
    root,
    libraryPath,
    environment: { ...process.env, LD_LIBRARY_PATH: libraryPath },
    path(file) {
      const found = join(root, file);
      if (!existsSync(found)) throw new Error(`${name} has no ${file}: looked for ${found}`);
      return found;
    },
  };
}

async function fetch(name: string, root: string): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, `.${name}-`));
  try {
    const archives = join(work, "archives");
    await mkdir(archives);
    // apt-get download drops its rights to the user _apt where it can, and warns where it cannot.
    await run(
      "apt-get",
      ["download", "-qq", "-o", "APT::Sandbox::User=root", ...(await missing(name))],
      {
        cwd: archives,
      },
    );
    const tree = join(work, "tree");
    for (const archive of await readdir(archives)) {
      await run("dpkg", ["-x", join(archives, archive), tree]);
    }
    await rename(tree, root).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** The package and those of its dependencies that this machine does not have. */
async function missing(name: string): Promise<string[]> {
  const { stdout } = await run("apt-get", [
    "install",
    "--simulate",
    "--reinstall",
    "--no-install-recommends",
    name,
  ]);
  return [...stdout.matchAll(/^Inst (\S+)/gm)].map((match) => match[1]!);
}
