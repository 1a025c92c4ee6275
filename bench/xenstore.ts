/** Our xenstore daemon beside Xen's own in C, each in a process, under the same load (xenstore-load.c). */
import { execFile, execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { GenuineXenstored } from "../test/support/xenstored.ts";
import { type Comparison, compare } from "./rounds.ts";

const MILLISECONDS = 700;

/** Name, mode and clients of each load. */
const loads = [
  ["ping-pong, 1 client", "ping", 1, "requests/s"],
  ["ping-pong, 8 clients", "ping", 8, "requests/s"],
  ["transactions, 1 client", "transaction", 1, "transactions/s"],
  ["transactions, 8 clients", "transaction", 8, "transactions/s"],
  ["watches, 7 of 1 node", "watch", 8, "events/s"],
] as const;

export async function* xenstore(rounds: number): AsyncGenerator<Comparison> {
  const scratch = mkdtempSync(join(tmpdir(), "vbdkit-bench-"));
  const load = join(scratch, "load");
  const source = join(import.meta.dirname, "xenstore-load.c");
  execFileSync("gcc", ["-O2", "-Wall", "-o", load, source]);
  const socket = join(scratch, "socket");
  const child = fork(join(import.meta.dirname, "xenstored-process.ts"), [socket]);
  try {
    await once(child, "message");
    await using genuine = await GenuineXenstored.start();
    for (const [name, mode, clients, unit] of loads) {
      const candidate = (whose: string, path: string) => ({
        name: whose,
        measure: async () => {
          const words = [path, mode, String(clients), String(MILLISECONDS)];
          return Number((await promisify(execFile)(load, words)).stdout);
        },
      });
      const both = [candidate("vbdkit", socket), candidate("xenstored", genuine.socket)] as const;
      yield await compare(name, unit, both, rounds);
    }
  } finally {
    child.kill();
    await once(child, "exit");
    rmSync(scratch, { recursive: true });
  }
}
