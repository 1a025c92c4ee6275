/**
 * What boots quickly under emulation: Linux as a bare ELF file (unpacking a bzImage takes an emulated processor five
 * seconds; Documentation/arch/x86/boot.rst says where the payload lies), and the modules that are needed alone.
 */
import { execFileSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import type { UnpackedSystem } from "../../support/debian.ts";

/** Offsets of the setup header. */
const SETUP_SECTORS = 0x1f1;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;

const MAXIMUM_KERNEL_BYTES = 256 * 2 ** 20;

/** The vmlinux inside a bzImage, unpacked by the programs of a system. */
export function extractVmlinux(image: Buffer, system: UnpackedSystem): Buffer {
  const setup = ((image[SETUP_SECTORS] || 4) + 1) * 512;
  const start = setup + image.readUInt32LE(PAYLOAD_OFFSET);
  // The build appends the unpacked length, four bytes that no decompressor expects.
  const payload = image.subarray(start, start + image.readUInt32LE(PAYLOAD_LENGTH) - 4);
  const elf = decompress(payload, system);
  if (elf.subarray(0, 4).toString("latin1") !== "\x7fELF") {
    throw new Error("the kernel's payload is no ELF file");
  }
  return elf;
}

function decompress(payload: Buffer, system: UnpackedSystem): Buffer {
  switch (payload.readUInt16BE(0)) {
    case 0x1f8b:
      return gunzipSync(payload);
    case 0x28b5:
      return zstdDecompressSync(payload);
    case 0xfd37: {
      const [program, ...words] = system.command("usr/bin/xz");
      words.push("--decompress", "--stdout", "--single-stream");
      return execFileSync(program, words, { input: payload, maxBuffer: MAXIMUM_KERNEL_BYTES });
    }
    default:
      throw new Error("the kernel is compressed in a way that is not known here");
  }
}

/** A module as it lies in lib/modules/VERSION/, with the names of those it needs, in the order of loading. */
interface KernelModule {
  readonly name: string;
  readonly path: string;
  readonly content: Buffer;
  readonly needs: readonly string[];
  readonly aliases: readonly string[];
}

/** The modules of a kernel package, and what depmod(8) would say of a choice of them. */
export class KernelModules {
  readonly #folder: string;
  readonly #system: UnpackedSystem;
  readonly #paths: ReadonlyMap<string, string>;
  /** What is a module elsewhere, and a part of this kernel. */
  readonly #builtIn: ReadonlySet<string>;
  readonly #known = new Map<string, KernelModule>();

  /**
   * @param folder - lib/modules/VERSION of the package.
   * @param system - whose programs unpack modules that are compressed.
   */
  constructor(folder: string, system: UnpackedSystem) {
    this.#folder = folder;
    this.#system = system;
    const builtIn = readFileSync(join(folder, "modules.builtin"), "utf8").trim().split("\n");
    this.#builtIn = new Set(builtIn.map((path) => nameOf(path)));
    this.#paths = new Map(
      globSync("kernel/**/*.ko{,.xz}", { cwd: folder }).map((path) => [nameOf(path), path]),
    );
  }

  /** These and what they need (but what the kernel has in itself), each after what it needs. */
  withNeeds(names: readonly string[]): readonly KernelModule[] {
    const chosen = new Map<string, KernelModule>();
    const choose = (name: string): void => {
      if (chosen.has(name) || this.#builtIn.has(name)) return;
      const module = this.#read(name);
      for (const need of module.needs) choose(need);
      chosen.set(name, module);
    };
    for (const name of names) choose(canonical(name));
    return [...chosen.values()];
  }

  /** The files modules.dep and modules.alias for a choice that is complete in itself. */
  index(modules: readonly KernelModule[]): Readonly<Record<string, string>> {
    const paths = (names: readonly string[]) =>
      names.map((name) => this.#read(name).path).join(" ");
    return {
      "modules.dep": modules
        .map(({ name, path }) => `${path}: ${paths(this.#needsOf(name).reverse())}\n`)
        .join(""),
      "modules.alias": modules
        .flatMap(({ name, aliases }) => aliases.map((alias) => `alias ${alias} ${name}\n`))
        .join(""),
    };
  }

  #needsOf(name: string): string[] {
    return this.withNeeds([name])
      .slice(0, -1)
      .map((module) => module.name);
  }

  #read(name: string): KernelModule {
    const known = this.#known.get(name);
    if (known !== undefined) return known;
    const path = this.#paths.get(name);
    if (path === undefined) throw new Error(`the kernel has no module ${name}`);
    const file = readFileSync(join(this.#folder, path));
    const content = path.endsWith(".xz") ? decompress(file, this.#system) : file;
    const information = content.toString("latin1");
    const needs = /\0depends=([^\0]*)\0/.exec(information)?.[1]?.split(",") ?? [];
    const module = {
      name,
      path: path.replace(/\.xz$/, ""),
      content,
      needs: needs.filter((need) => need !== "").map(canonical),
      aliases: [...information.matchAll(/\0alias=([^\0]*)/g)].map((match) => match[1]!),
    };
    this.#known.set(name, module);
    return module;
  }
}

function nameOf(path: string): string {
  return canonical(basename(path).replace(/\.ko.*/, ""));
}

/** To the kernel "xen-blkback" and "xen_blkback" are one name. */
function canonical(name: string): string {
  return name.replaceAll("-", "_");
}
