/**
 * Debian packages that tests look at but the machine must not get: QEMU's Xen binary, Xen's own tools. Installing
 * them would start daemons or change how the machine boots, so they are fetched and unpacked into .cache/debian/.
 *
 * Invariant: a folder there is complete or absent (it is renamed into place), so tests in parallel may share it.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, globSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const CACHE = join(import.meta.dirname, "../../.cache/debian");
/** apt-get download drops its rights to the user _apt where it can, and warns where it cannot. */
const NO_SANDBOX = ["-o", "APT::Sandbox::User=root"];
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

/** Whether it is there; if not, `unpacked` fetches it, which takes a while. */
export function isUnpacked(name: string): boolean {
  return existsSync(join(CACHE, name));
}

export async function unpacked(name: string): Promise<UnpackedPackage> {
  const root = join(CACHE, name);
  if (!isUnpacked(name)) await fetch([name], root, []);
  return {
    root,
    libraryPath: libraryPath(root),
    environment: { ...process.env, LD_LIBRARY_PATH: libraryPath(root) },
    path: (file) => existing(name, root, file),
  };
}

/** A root file system, down to the C library. */
export interface UnpackedSystem {
  /** What would be `/`. */
  readonly root: string;
  /** The file under root: `path("boot")`. Throws when no package has it. */
  path(name: string): string;
  /** Words that run a program of it here, with its own libraries: `command("usr/bin/xz")`. */
  command(name: string): readonly [string, ...string[]];
}

/**
 * The packages and all that they need, whatever this machine has. Nothing of it has run: there are no users, no links of
 * update-alternatives, no ld.so.cache.
 *
 * @param release - of Debian, by its code name; absent for that of this machine.
 */
export async function unpackedSystem(
  names: readonly string[],
  release?: string,
): Promise<UnpackedSystem> {
  const what = release === undefined ? names : [release, ...names];
  const key = createHash("sha256").update(what.join("\n")).digest("hex").slice(0, 16);
  const root = join(CACHE, `system-${key}`);
  // To apt nothing is installed here.
  if (!existsSync(root)) await fetch(names, root, ["-o", "Dir::State::status=/dev/null"], release);
  const path = (name: string) => existing(names.join(", "), root, name);
  return {
    root,
    path,
    command(name) {
      const loader = path("lib64/ld-linux-x86-64.so.2");
      return [loader, "--library-path", libraryPath(root), path(name)];
    },
  };
}

function libraryPath(root: string): string {
  return globSync("{usr/,}lib/{*-linux-gnu*,xen-*/lib,xen-*/lib/*}/", { cwd: root })
    .concat("lib", "usr/lib")
    .map((folder) => join(root, folder))
    .join(":");
}

function existing(what: string, root: string, file: string): string {
  const found = join(root, file);
  if (!existsSync(found)) throw new Error(`${what}: no ${file}: looked for ${found}`);
  return found;
}

async function fetch(
  names: readonly string[],
  root: string,
  options: readonly string[],
  release?: string,
): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, ".fetch-"));
  try {
    const archives = join(work, "archives");
    await mkdir(archives);
    try {
      if (release !== undefined) throw new Error("the machine's lists are of its own release");
      await download(names, archives, options);
    } catch {
      // No lists, or older than the archive. Lists of our own need no rights; the machine's stay as they are.
      const apt = join(CACHE, "../apt", release ?? "");
      const lists = ["lists", "cache"].map((name) => join(apt, name));
      for (const folder of lists) await mkdir(join(folder, "partial"), { recursive: true });
      const own = ["-o", `Dir::State::lists=${lists[0]}`, "-o", `Dir::Cache=${lists[1]}`];
      if (release !== undefined) own.push(...(await sourcesOf(release, join(apt, "sources.list"))));
      await run("apt-get", ["update", "-qq", ...NO_SANDBOX, ...own]);
      await download(names, archives, [...options, ...own]);
    }
    const tree = join(work, "tree");
    // As on a machine whose /usr is merged, or programs and libraries would lie in two places.
    for (const name of ["bin", "sbin", "lib", "lib32", "lib64"]) {
      await mkdir(join(tree, "usr", name), { recursive: true });
      await symlink(`usr/${name}`, join(tree, name));
    }
    for (const archive of await readdir(archives)) {
      // dpkg -x would put folders in place of those links.
      const script = 'dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"';
      await run("bash", ["-o", "pipefail", "-c", script, join(archives, archive), tree]);
    }
    await rename(tree, root).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Has apt look for packages of another release where the machine gets its own. */
async function sourcesOf(release: string, file: string): Promise<string[]> {
  const { stdout } = await run("apt-get", [
    ...["indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
    "Created-By: Packages",
  ]);
  // Not the updates, nor what others than Debian keep for it.
  const words = stdout.split("\n").map((line) => line.split(" "));
  const [mirror] =
    words.find(([, name, part]) => /^[a-z]+$/.test(name ?? "") && part === "main") ?? [];
  if (mirror === undefined) throw new Error("apt's sources name no release of Debian");
  const keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
  await writeFile(file, `deb [signed-by=${keys}] ${mirror} ${release} main\n`);
  return ["-o", `Dir::Etc::sourcelist=${file}`, "-o", "Dir::Etc::sourceparts=-"];
}

/** Fetches the packages, and those that they need and this machine (or what `options` take for it) does not have. */
async function download(
  names: readonly string[],
  folder: string,
  options: readonly string[],
): Promise<void> {
  const { stdout } = await run("apt-get", [
    "install",
    "--simulate",
    "--reinstall",
    "--no-install-recommends",
    ...options,
    ...names,
  ]);
  const all = [...stdout.matchAll(/^Inst (\S+) (?:\[\S+\] )?\((\S+)/gm)];
  await run(
    "apt-get",
    [
      "download",
      "-qq",
      ...NO_SANDBOX,
      ...options,
      ...all.map(([, name, version]) => `${name}=${version}`),
    ],
    { cwd: folder },
  );
}
