/**
 * The foreign programs that tests use as judges and peers. On Debian as root what is missing is installed; anywhere
 * else it is named in one message, because a test that is quietly left out tells nobody anything.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, readdirSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { isUnpacked, unpacked, unpackedPackages } from "../test/support/debian.ts";

/** Debian package, and a program or file by which other systems are asked for it. */
const tools: Readonly<Record<string, string>> = {
  e2fsprogs: "mkfs.ext4",
  fio: "fio",
  gcc: "gcc",
  "gcc-multilib": "/usr/include/asm",
  "libnbd-bin": "nbdinfo",
  "libxen-dev": "/usr/include/xen/io/blkif.h",
  nbdkit: "nbdkit",
  "python3-libnbd": "/usr/lib/python3/dist-packages/nbd.py",
  "qemu-system-common": "qemu-storage-daemon",
  "qemu-user": "qemu-i386",
  "qemu-utils": "qemu-img",
  strace: "strace",
  "xenstore-utils": "xenstore-ls",
};

/** Throws an Error that names what is missing and how to get it. Quick when everything is there. */
export async function ensureTools(say: (line: string) => void): Promise<void> {
  const debian = existsSync("/etc/debian_version") && onPath("apt-get");
  const missing = Object.keys(tools).filter((name) =>
    debian ? !installed(name) : !present(tools[name]!),
  );
  if (missing.length > 0) {
    if (!debian || process.getuid?.() !== 0) {
      throw new Error(
        `the tests need ${missing.join(", ")}: on Debian, as root: apt-get install --no-install-recommends ${missing.join(" ")}`,
      );
    }
    say(`Installing ${missing.join(", ")} ...`);
    install(missing);
  }
  if (!debian) {
    throw new Error(
      `the tests need Debian packages that are unpacked, not installed: ${unpackedPackages.join(", ")}`,
    );
  }
  for (const name of unpackedPackages) {
    if (!isUnpacked(name)) say(`Fetching ${name} into .cache/debian ...`);
    await unpacked(name);
  }
}

function installed(name: string): boolean {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: a field of dpkg-query, not of JavaScript.
  const query = spawnSync("dpkg-query", ["-W", "-f", "${db:Status-Status}", name]);
  return query.stdout?.toString() === "installed";
}

function install(names: readonly string[]): void {
  const options = ["-qq", "-y", "-o", "DPkg::Lock::Timeout=300"];
  const get = (...words: string[]) =>
    execFileSync("apt-get", [...words, ...options], {
      stdio: ["ignore", "ignore", "inherit"],
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    });
  const packages = ["install", "--no-install-recommends", ...names];
  if (listsAreEmpty()) get("update");
  try {
    get(...packages);
  } catch {
    // Lists that are older than the archive name versions that are gone.
    get("update");
    get(...packages);
  }
}

function listsAreEmpty(): boolean {
  try {
    return !readdirSync("/var/lib/apt/lists").some((name) => name.includes("Packages"));
  } catch {
    return true;
  }
}

function present(tool: string): boolean {
  return tool.startsWith("/") ? existsSync(tool) : onPath(tool);
}

function onPath(program: string): boolean {
  return (process.env.PATH ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

if (import.meta.main) {
  const name = readFileSync("/etc/os-release", "utf8").match(/^PRETTY_NAME="(.*)"/m)?.[1];
  await ensureTools(console.log);
  console.log(`Every tool the tests need is here (${name}).`);
}
