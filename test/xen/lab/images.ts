/**
 * The files that the lab boots from, made of Debian's packages and kept in .cache/xen-lab/ under a hash of what they
 * are made of.
 *
 * Invariant: a folder there is complete or absent (it is renamed into place), so tests in parallel may share it.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, globSync, readdirSync, readFileSync, statSync } from "node:fs";
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gunzipSync } from "node:zlib";
import { type UnpackedSystem, unpackedSystem } from "../../support/debian.ts";
import { pack } from "./checkout.ts";
import { type CpioEntry, cpio } from "./cpio.ts";
import { extractVmlinux, KernelModules } from "./kernel.ts";

const run = promisify(execFile);
const CHECKOUT = join(import.meta.dirname, "../../..");
const CACHE = join(CHECKOUT, ".cache/xen-lab");
/** Half a gigabyte each; whoever changes the lab goes back and forth between a few, perhaps in several checkouts. */
const IMAGES_KEPT = 6;
/** Making them takes minutes. */
const UNFINISHED_LIMIT_MILLISECONDS = 3_600_000;

/** Versions of Xen, and the releases of Debian that have them; the machine's own needs no name. */
const releases = { "4.14": "bullseye", "4.17": undefined, "4.20": "trixie" } as const;
export type XenVersion = keyof typeof releases;

/** Of dom0; what they need comes with them. */
const dom0Packages = [
  "bash",
  "busybox-static",
  "coreutils",
  "e2fsprogs",
  "fio",
  "grub-xen-host",
  // For Node.
  "libatomic1",
  "libstdc++6",
  "linux-image-amd64",
  "qemu-system-xen",
  "strace",
  "util-linux",
];
const packagesOf = (xen: XenVersion) => [
  // It is a part of the next there.
  ...dom0Packages.filter((name) => xen !== "4.14" || name !== "qemu-system-xen"),
  `xen-hypervisor-${xen}-amd64`,
  `xen-utils-${xen}`,
  "xenstore-utils",
];
/** Of the host, whatever Xen there is. */
const hostPackages = ["qemu-system-x86", "squashfs-tools", "xz-utils"];
/** What the first root of dom0 loads to find the second. */
const dom0BootModules = [
  "virtio_pci",
  "virtio_blk",
  "virtio_console",
  "9p",
  "9pnet_virtio",
  "squashfs",
  "overlay",
];
/** What a guest loads. */
const guestModules = ["xen-blkfront", "ext4", "crc32c_generic", "squashfs", "overlay"];
/** The commands of a first root; all of them are busybox. */
const commands = [
  ..."base64 cat cp dd echo grep insmod kill ls mkdir mknod mount poweroff ps rm sh sleep stty switch_root sync".split(
    " ",
  ),
  ..."umount usleep".split(" "),
];
/** For modprobe(8) in dom0. */
const dom0Modules = [
  ...dom0BootModules,
  ...[
    "xenfs",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-evtchn",
    "xen-privcmd",
    "xen-blkback",
    "xen-blkfront",
  ],
  ...["brd", "loop", "null_blk", "nbd", "ext4", "crc32c_generic", "tun", "xen-netback"],
];
/** Of the packages, and of no use here. */
const leftOut = [
  "usr/share/doc",
  "usr/share/man",
  "usr/share/locale",
  "usr/share/iso-codes",
  "boot",
  "usr/lib/modules",
];

export interface LabImages {
  /** The packages, where QEMU is. */
  readonly system: UnpackedSystem;
  /** The hypervisor, for QEMU's -kernel. */
  readonly xen: string;
  readonly kernel: string;
  readonly initramfs: string;
  /** dom0's root file system, a squashfs. */
  readonly root: string;
}

/** Everything the lab boots from; a matter of minutes the first time, of nothing later. */
export async function labImages(
  say: (line: string) => void = () => {},
  xen: XenVersion = "4.17",
): Promise<LabImages> {
  const folder = join(CACHE, key(xen));
  if (!existsSync(folder)) say("Fetching and packing what the Xen lab boots from ...");
  const system = await unpackedSystem([...packagesOf("4.17"), ...hostPackages]);
  if (!existsSync(folder)) {
    const release = releases[xen];
    await make(
      system,
      release === undefined ? system : await unpackedSystem(packagesOf(xen), release),
      folder,
    );
  }
  await tidy(folder);
  return {
    system,
    xen: join(folder, "xen"),
    kernel: join(folder, "vmlinux"),
    initramfs: join(folder, "initramfs"),
    root: join(folder, "root.squashfs"),
  };
}

function key(xen: XenVersion): string {
  const hash = createHash("sha256").update(xen);
  const sources = ["cpio.ts", "images.ts", "kernel.ts", "root/*", "guest/*"];
  for (const name of globSync(sources, { cwd: import.meta.dirname }).sort()) {
    hash.update(`${name}\n`).update(readFileSync(join(import.meta.dirname, name)));
  }
  return hash
    .update(readFileSync(join(CHECKOUT, "node_modules/node/package.json")))
    .digest("hex")
    .slice(0, 16);
}

/** Removes what is of no more use: images of earlier sources, and what a process that was killed was making. */
async function tidy(used: string): Promise<void> {
  const now = new Date();
  await utimes(used, now, now);
  const age = (path: string) =>
    now.getTime() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0);
  const paths = (pattern: string) =>
    globSync(pattern, { cwd: CACHE }).map((name) => join(CACHE, name));
  const images = paths("????????????????").sort((left, right) => age(left) - age(right));
  const unfinished = paths(".make-*").filter((path) => age(path) > UNFINISHED_LIMIT_MILLISECONDS);
  for (const path of [...images.slice(IMAGES_KEPT), ...unfinished]) {
    await rm(path, { recursive: true, force: true });
  }
}

/** Makes them of a system, with programs of the host's. */
async function make(host: UnpackedSystem, system: UnpackedSystem, folder: string): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, ".make-"));
  try {
    const images = join(work, "images");
    await mkdir(images);
    const boot = system.path("boot");
    const file = (pattern: string) =>
      readFileSync(join(boot, globSync(pattern, { cwd: boot })[0]!));
    const version = readdirSync(system.path("usr/lib/modules"))[0]!;
    const modules = new KernelModules(system.path(`usr/lib/modules/${version}`), host);
    const busybox = readFileSync(system.path("usr/bin/busybox"));

    const vmlinux = extractVmlinux(file("vmlinuz-*"), host);
    await writeFile(join(images, "xen"), gunzipSync(file("xen-*.gz")));
    await writeFile(join(images, "vmlinux"), vmlinux);
    await writeFile(
      join(images, "initramfs"),
      initramfs(busybox, modules, dom0BootModules, { init: "root/initramfs-init" }),
    );
    const root = join(work, "root");
    await run("cp", ["--archive", "--link", system.root, root]);
    await completeRoot(root, version, modules);
    const forGuests = join(root, "usr/lib/xen-lab");
    await writeFile(join(forGuests, "vmlinux"), vmlinux);
    await writeFile(
      join(forGuests, "guest-initramfs"),
      initramfs(busybox, modules, guestModules, {
        init: "guest/initramfs-init",
        agent: "guest/agent",
      }),
    );
    await pack(host, root, join(images, "root.squashfs"));
    await rename(images, folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Busybox, modules in the order of loading, and scripts. */
function initramfs(
  busybox: Buffer,
  modules: KernelModules,
  names: readonly string[],
  scripts: Readonly<Record<string, string>>,
): Buffer {
  const folders = ["bin", "dev", "lower", "modules", "proc", "root", "run", "sys", "upper"];
  return cpio([
    ...folders.map((name): CpioEntry => ({ name, kind: "directory" })),
    { name: "bin/busybox", kind: "file", content: busybox, executable: true },
    ...commands.map(
      (name): CpioEntry => ({ name: `bin/${name}`, kind: "link", target: "busybox" }),
    ),
    ...modules.withNeeds(names).map(
      ({ name, content }, index): CpioEntry => ({
        // The order of a shell's "*" is that of loading.
        name: `modules/${String(index).padStart(2, "0")}-${name}`,
        kind: "file",
        content,
      }),
    ),
    ...Object.entries(scripts).map(
      ([name, source]): CpioEntry => ({
        name,
        kind: "file",
        content: script(source),
        executable: true,
      }),
    ),
  ]);
}

function script(name: string): Buffer {
  return readFileSync(join(import.meta.dirname, name));
}

/** The files are links to the unpacked packages: they are replaced, never written to. */
async function completeRoot(root: string, version: string, modules: KernelModules): Promise<void> {
  const replace = async (name: string, content: string | Buffer, mode = 0o644): Promise<void> => {
    await rm(join(root, name), { force: true });
    await mkdir(join(root, name, ".."), { recursive: true });
    await writeFile(join(root, name), content, { mode });
  };
  for (const name of leftOut) await rm(join(root, name), { recursive: true, force: true });

  const folder = `usr/lib/modules/${version}`;
  const chosen = modules.withNeeds(dom0Modules);
  for (const { path, content } of chosen) await replace(join(folder, path), content);
  for (const [name, text] of Object.entries(modules.index(chosen))) {
    await replace(join(folder, name), text);
  }

  // Debian's programs where there are any; the rest (awk, grep, ip, vi ...) is busybox.
  const { stdout } = await run(join(root, "usr/bin/busybox"), ["--list"]);
  const there = new Set(await readdir(join(root, "usr/bin")));
  for (const name of await readdir(join(root, "usr/sbin"))) there.add(name);
  const ofBusybox = ["modprobe", "insmod", "rmmod", "lsmod"];
  for (const name of ofBusybox) await rm(join(root, "usr/sbin", name), { force: true });
  for (const name of stdout.trim().split("\n")) {
    if (there.has(name) && !ofBusybox.includes(name)) continue;
    const place = ofBusybox.includes(name) ? "usr/sbin" : "usr/bin";
    await rm(join(root, place, name), { force: true });
    await symlink("/usr/bin/busybox", join(root, place, name));
  }

  await replace("init", script("root/init"), 0o755);
  await replace("usr/lib/xen-lab/agent", script("root/agent"), 0o755);
  await replace("usr/local/bin/start-qdisk", script("root/start-qdisk"), 0o755);
  await replace("usr/local/bin/vbdkit", script("root/vbdkit"), 0o755);
  await replace("etc/xen/scripts/block", script("root/block"), 0o755);
  await replace("etc/profile", script("root/profile"));
  await replace(
    "etc/passwd",
    "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
  );
  await replace("etc/group", "root:x:0:\nnogroup:x:65534:\n");
  await replace("etc/hosts", "127.0.0.1 localhost lab\n");
  await cp(join(CHECKOUT, "node_modules/node/bin/node"), join(root, "usr/bin/node"));
  for (const name of ["lab", "checkout", "compile-cache", "mnt"])
    await mkdir(join(root, name), { recursive: true });
  await mkdir(join(root, "var/lib/xen"), { recursive: true });
  await rm(join(root, "var/run"), { recursive: true, force: true });
  await symlink("/run", join(root, "var/run"));
}
