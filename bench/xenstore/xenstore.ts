/** Our xenstore daemon beside Xen's own in C, each in a process, under the same load (load.c). */
import { execFile, fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { promisify } from "node:util";
import { GenuineXenstored } from "../../test/support/xenstored.ts";
import { endChild } from "../harness/child.ts";
import type { Contender, Group, OpenedRow, Row } from "../harness/group.ts";
import type { Scratch } from "../harness/scratch.ts";

const OURS = "vbdkit";
const THEIRS = "xenstored";

/** Name, what the load calls it, clients, the aim, what is counted, and what it is. */
const loads = [
  ["ping-1", "ping", 1, 0.9, "requests/s", "READ and WRITE in turn, 1 client"],
  ["ping-8", "ping", 8, 1, "requests/s", "READ and WRITE in turn, 8 clients"],
  ["transaction-1", "transaction", 1, 1, "transactions/s", "START, READ, WRITE, END, 1 client"],
  ["transaction-8", "transaction", 8, 1, "transactions/s", "START, READ, WRITE, END, 8 clients"],
  ["watch-7", "watch", 8, 1, "events/s", "events of one node, 7 watches"],
] as const;

export const xenstore: Group = {
  name: "xenstore",
  summary: "our xenstore daemon beside Xen's own, under the same load",
  columns: [OURS, THEIRS],
  rows: loads.map(
    ([name, mode, clients, least, unit, summary]): Row => ({
      name,
      summary,
      unit,
      aims: [{ against: [THEIRS], least }],
      open: (scratch) => openRow(scratch, mode, clients),
    }),
  ),
};

async function openRow(scratch: Scratch, mode: string, clients: number): Promise<OpenedRow> {
  await using undo = new AsyncDisposableStack();
  const load = join(scratch.folder, "xenstore-load");
  const source = join(import.meta.dirname, "load.c");
  await promisify(execFile)("gcc", ["-O2", "-Wall", "-o", load, source]);
  const socket = scratch.socket();
  const child = fork(join(import.meta.dirname, "xenstored-process.ts"), [socket]);
  undo.defer(() => endChild(child));
  await Promise.race([
    once(child, "message"),
    once(child, "exit").then(([code]) => {
      throw new Error(`${OURS} ended with ${code}`);
    }),
  ]);
  const genuine = undo.use(await GenuineXenstored.start());
  const contender = (name: string, path: string): Contender => ({
    name,
    // The load says so and ends with an error where an answer is none.
    measure: async (seconds) => {
      const words = [path, mode, String(clients), String(seconds * 1000)];
      return Number((await promisify(execFile)(load, words)).stdout);
    },
  });
  const ends = undo.move();
  return {
    contenders: [contender(OURS, socket), contender(THEIRS, genuine.socket)],
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}
