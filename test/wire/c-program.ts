/** Xen's own headers as judges: compiles a C program of this folder (or a neighbour) for an ABI, and runs it. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BlkifProtocol } from "../../src/wire/blkif.ts";

/** ABIs that a compiler for x86 can speak. The third, arm-abi, aligns 64-bit fields as x86_64-abi does. */
export const compiledProtocols = ["x86_64-abi", "x86_32-abi"] as const;

export class CProgram implements Disposable {
  readonly #folder: string = mkdtempSync(join(tmpdir(), "vbdkit-c-"));
  readonly #program: string = join(this.#folder, "program");
  /** Not every x86-64 kernel runs 32-bit programs; QEMU does everywhere. */
  readonly #runner: readonly string[];

  /** `source` is a path, `libraries` as `-l` takes them. Needs gcc, gcc-multilib, libxen-dev, and qemu-user for programs
   * of 32 bits. */
  constructor(source: string, protocol: BlkifProtocol, libraries: readonly string[] = []) {
    const width = protocol === "x86_32-abi" ? "-m32" : "-m64";
    this.#runner = protocol === "x86_32-abi" ? ["qemu-i386"] : [];
    const flags = [width, "-O1", "-Wall", "-Werror", "-D__XEN_INTERFACE_VERSION__=0x00040d00"];
    try {
      execFileSync(process.env.CC ?? "gcc", [
        ...[...flags, "-o", this.#program, source],
        ...libraries.map((name) => `-l${name}`),
      ]);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** What the program prints, line by line. */
  run(parameters: readonly string[], input = ""): string[] {
    const options = { input, encoding: "utf8", maxBuffer: 256 << 20 } as const;
    const [command, ...words] = [...this.#runner, this.#program, ...parameters];
    return execFileSync(command!, words, options).trimEnd().split("\n");
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
