/** The whole way in one process, frontend, ring, backend and file, beside fio on the same file. */
import { join } from "node:path";
import type { Link } from "../../src/machine/attached-disk.ts";
import { ChildContender } from "../harness/child.ts";
import { fioContender } from "../harness/fio.ts";
import type { Aim, Contender, Group, OpenedRow, Row } from "../harness/group.ts";
import type { Workload } from "../harness/load.ts";
import { rateOf } from "../harness/rate.ts";
import type { Place, Scratch } from "../harness/scratch.ts";
import type { PipelineOptions } from "./pipeline-process.ts";

const PSYNC = "fio psync";
const DEFAULT = "fio io_uring";
const TUNED = "fio tuned";

/** What fio's io_uring can be given to be at its best: batches, and what the kernel need not look up each time. */
const TUNING = [
  "--iodepth_batch_submit=16",
  "--iodepth_batch_complete_min=1",
  "--iodepth_batch_complete_max=16",
  "--fixedbufs",
  "--registerfiles",
];

interface Way {
  readonly place: Place;
  readonly direct: boolean;
  readonly link: Link;
}

/** Names of rows begin with theirs; what is usual has none. */
const ways: Readonly<Record<string, Way & { readonly summary: string }>> = {
  "": { place: "disk", direct: false, link: "thread", summary: "page-cached" },
  "tmpfs-": { place: "memory", direct: false, link: "thread", summary: "tmpfs" },
  "direct-": { place: "disk", direct: true, link: "thread", summary: "O_DIRECT" },
  "worker-": {
    place: "disk",
    direct: false,
    link: "worker",
    summary: "page-cached, backend in a worker",
  },
};

const KIB = 1024;
const workloads: Readonly<Record<string, Workload & { readonly summary: string }>> = {
  "4k-read-1": { ...of(100, 4 * KIB, 1), summary: "4 KiB reads, depth 1" },
  "4k-read-32": { ...of(100, 4 * KIB, 32), summary: "4 KiB reads, depth 32" },
  "4k-read-128": { ...of(100, 4 * KIB, 128), summary: "4 KiB reads, depth 128" },
  "4k-write-1": { ...of(0, 4 * KIB, 1), summary: "4 KiB writes, depth 1" },
  "4k-write-32": { ...of(0, 4 * KIB, 32), summary: "4 KiB writes, depth 32" },
  "4k-write-128": { ...of(0, 4 * KIB, 128), summary: "4 KiB writes, depth 128" },
  "4k-mixed-32": { ...of(70, 4 * KIB, 32), summary: "4 KiB, 70 % reads, depth 32" },
  "44k-read-32": { ...of(100, 44 * KIB, 32), summary: "44 KiB reads, depth 32" },
  "44k-write-32": { ...of(0, 44 * KIB, 32), summary: "44 KiB writes, depth 32" },
  "1m-read-8": { ...of(100, 1024 * KIB, 8), summary: "1 MiB reads, depth 8" },
  "1m-write-8": { ...of(0, 1024 * KIB, 8), summary: "1 MiB writes, depth 8" },
};

function of(readPercent: number, blockBytes: number, depth: number): Workload {
  return { readPercent, blockBytes, depth };
}

const aims: Readonly<Record<string, readonly Aim[]>> = {
  "4k-read-1": [by(PSYNC, 0.7)],
  "4k-write-1": [by(PSYNC, 0.7)],
  "4k-read-32": [by(DEFAULT, 1.5), by(TUNED, 1)],
  "4k-write-32": [by(DEFAULT, 1.2), by(TUNED, 0.9)],
  "44k-read-32": [by(DEFAULT, 1)],
  "44k-write-32": [by(DEFAULT, 1)],
  "1m-read-8": [by(DEFAULT, 1)],
  "1m-write-8": [by(DEFAULT, 1)],
  "tmpfs-4k-read-32": [by(PSYNC, 0.95)],
  "tmpfs-4k-write-32": [by(PSYNC, 0.95)],
  "direct-4k-read-32": [by(DEFAULT, 0.95)],
  "direct-4k-write-32": [by(DEFAULT, 0.95)],
  "worker-4k-read-32": [by(DEFAULT, 1)],
  "worker-4k-write-32": [by(DEFAULT, 1)],
};

function by(peer: string, least: number): Aim {
  return { against: [peer], least };
}

/** Of rows that no aim is about. */
const onlyTold: readonly Aim[] = [{ against: [PSYNC, DEFAULT, TUNED] }];

const shortRows = new Set(["4k-read-32", "4k-write-32", "tmpfs-4k-read-32"]);

/** A worker has something to gain or to lose where there are many requests; of the rest one row tells all. */
const workerRows = new Set(["4k-read-1", "4k-read-32", "4k-write-32", "44k-read-32"]);

const rows: Row[] = Object.entries(ways).flatMap(([prefix, way]) =>
  Object.entries(workloads)
    .filter(([name]) => way.link !== "worker" || workerRows.has(name))
    .map(([name, workload]) => rowOf(prefix + name, way, workload)),
);

export const pipeline: Group = {
  name: "pipeline",
  summary: "frontend, ring, backend and file in one process, beside fio on such a file",
  columns: ["vbdkit", PSYNC, DEFAULT, TUNED],
  rows,
};

function rowOf(
  name: string,
  way: Way & { readonly summary: string },
  workload: Workload & { readonly summary: string },
): Row {
  return {
    name,
    summary: `${workload.summary}, ${way.summary}`,
    unit: rateOf(workload.blockBytes).unit,
    aims: aims[name] ?? onlyTold,
    short: shortRows.has(name),
    open: (scratch) => openRow(scratch, name, way, workload),
  };
}

async function openRow(
  scratch: Scratch,
  name: string,
  way: Way,
  workload: Workload,
): Promise<OpenedRow> {
  const { place, direct, link } = way;
  const { blockBytes } = workload;
  const { figure } = rateOf(blockBytes);
  // Who writes has a file of his own, or nobody could say what is to be in it.
  const reads = workload.readPercent === 100;
  const fileOf = (who: string) =>
    reads ? scratch.file(place, "data") : scratch.file(place, `${name}-${who}`, blockBytes);
  const file = fileOf("ours");
  const theirs = fileOf("theirs");
  const options: PipelineOptions = { file, direct, link, workload };
  const module = join(import.meta.dirname, "pipeline-process.ts");
  const child = await ChildContender.start("vbdkit", module, options);
  const ours: Contender = {
    name: child.name,
    measure: async (s) => figure(await child.measure(s)),
  };
  const job = [`--filename=${theirs}`, `--direct=${Number(direct)}`];
  const peer = (title: string, engine: string, words: readonly string[] = []) =>
    fioContender(title, workload, [...job, `--ioengine=${engine}`, ...words], figure);
  return {
    contenders: [
      ours,
      peer(PSYNC, "psync"),
      peer(DEFAULT, "io_uring"),
      peer(TUNED, "io_uring", TUNING),
    ],
    async [Symbol.asyncDispose]() {
      await child[Symbol.asyncDispose]();
      if (reads) return;
      scratch.remove(file);
      scratch.remove(theirs);
    },
  };
}
