/** Where figures were measured, so that nobody compares those of two machines. */
import { execFileSync } from "node:child_process";
import { cpus, release, totalmem } from "node:os";
import { formatSize } from "../../src/util/size.ts";

export interface MachineFacts {
  readonly processor: string;
  readonly cores: number;
  readonly memory: string;
  readonly kernel: string;
  readonly node: string;
  readonly peers: Readonly<Record<string, string>>;
}

/** Program, and the words that make it say its version. */
const peers = { fio: "fio", nbdkit: "nbdkit", qemu: "qemu-nbd", libnbd: "nbdcopy" };

export function machineFacts(): MachineFacts {
  const all = cpus();
  return {
    processor: all[0]?.model.trim() ?? "unknown",
    cores: all.length,
    memory: formatSize(totalmem()),
    kernel: release(),
    node: process.version,
    peers: Object.fromEntries(
      Object.entries(peers).map(([name, program]) => [name, versionOf(program)]),
    ),
  };
}

function versionOf(program: string): string {
  const text = execFileSync(program, ["--version"], { encoding: "utf8" });
  return /\d+(\.\d+)+/.exec(text)?.[0] ?? "unknown";
}

/** One line. */
export function describeMachine({ processor, cores, kernel, node, peers }: MachineFacts): string {
  const versions = Object.entries(peers).map(([name, version]) => `${name} ${version}`);
  return `${cores} cores of ${processor}, Linux ${kernel}, Node ${node}, ${versions.join(", ")}`;
}
