/** Our backend beside QEMU's xen-block, each a process, under the same frontend in C in another: Xen's own ring macros, and
 * no code of ours. */
import { join } from "node:path";
import { buildRingLoad } from "../../test/support/ring-load.ts";
import { ChildContender } from "../harness/child.ts";
import type { Aim, Contender, Group, OpenedRow, Row } from "../harness/group.ts";
import { rateOf } from "../harness/rate.ts";
import type { Scratch } from "../harness/scratch.ts";
import { PAGE_BYTES } from "../harness/stamps.ts";
import type { BackendOptions } from "./backend-process.ts";

const OURS = "vbdkit";
const QEMU = "QEMU xen-block";
const module = join(import.meta.dirname, "backend-process.ts");

export interface RingWorkload {
  readonly operation: "read" | "write";
  /** Of a request: up to 11, as a frontend without indirect requests has them. */
  readonly pages: number;
  readonly depth: number;
}

interface BackendRow extends RingWorkload {
  readonly aims: readonly Aim[];
  readonly short?: true;
}

const rows: Readonly<Record<string, BackendRow>> = {
  "4k-read-1": { operation: "read", pages: 1, depth: 1, aims: [by(2)] },
  "4k-read-32": { operation: "read", pages: 1, depth: 32, aims: [by(5)], short: true },
  "44k-read-32": { operation: "read", pages: 11, depth: 32, aims: [by(1.6)] },
  "4k-write-1": { operation: "write", pages: 1, depth: 1, aims: [by()] },
  "4k-write-32": { operation: "write", pages: 1, depth: 32, aims: [by()] },
  "44k-write-32": { operation: "write", pages: 11, depth: 32, aims: [by()] },
};

/** Without a number the ratio is told alone. */
function by(least?: number): Aim {
  return { against: [QEMU], ...(least === undefined ? {} : { least }) };
}

export const backend: Group = {
  name: "backend",
  summary: "the backend alone beside QEMU's, under the same frontend in C, a ring of one page",
  columns: [OURS, QEMU],
  rows: Object.entries(rows).map(([name, { aims, short = false, ...workload }]): Row => {
    const { operation, pages, depth } = workload;
    return {
      name,
      summary: `${(pages * PAGE_BYTES) / 1024} KiB ${operation}s${operation === "write" ? " to tmpfs" : ""}, depth ${depth}`,
      ...{ unit: rateOf(pages * PAGE_BYTES).unit, aims, short },
      open: (scratch) => openRow(scratch, workload),
    };
  }),
};

async function openRow(scratch: Scratch, workload: RingWorkload): Promise<OpenedRow> {
  await using undo = new AsyncDisposableStack();
  const program = join(scratch.folder, "ring-load");
  await buildRingLoad(program);
  const { pages, operation } = workload;
  // A disk that is written to is slower than both.
  const place = operation === "write" ? "memory" : "disk";
  const { figure } = rateOf(pages * PAGE_BYTES);
  // The frontend fills a file first, and knows what must be in it from then on.
  const start = async (name: string, whose: BackendOptions["whose"]): Promise<Contender> => {
    const file = scratch.file(place, `backend-${whose}`);
    const options: BackendOptions = { whose, file, program, workload };
    const child = undo.use(await ChildContender.start(name, module, options));
    return { name, measure: async (seconds) => figure(await child.measure(seconds)) };
  };
  const contenders = [await start(OURS, "ours"), await start(QEMU, "qemu")];
  const ends = undo.move();
  return { contenders, [Symbol.asyncDispose]: () => ends.disposeAsync() };
}
