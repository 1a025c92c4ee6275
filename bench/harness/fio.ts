/**
 * fio as a contender. Its traps: --runtime takes whole seconds (a fraction means the whole file), and at its start it
 * drops the page cache of its file, so that "cached" would measure the disk (--invalidate=0).
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Contender } from "./group.ts";
import type { Workload } from "./load.ts";
import { DATA_BYTES } from "./scratch.ts";

/** What fio tells of a job, as far as it is of use. */
export interface FioJob
  extends Readonly<
    Record<"read" | "write", { readonly iops: number; readonly total_ios: number }>
  > {
  readonly jobname: string;
  /** errno of the job. */
  readonly error: number;
}

/** The jobs of a report in JSON; it writes notes before that, too. Throws where one failed. */
export function fioJobs(output: string): readonly FioJob[] {
  const { jobs } = JSON.parse(output.slice(output.indexOf("{"))) as { readonly jobs: FioJob[] };
  const failed = jobs.find(({ error }) => error !== 0);
  if (failed === undefined) return jobs;
  throw new Error(`fio failed on ${failed.jobname} with errno ${failed.error}`);
}

/** The same requests as Load submits, by an engine of fio's. `words` say which, and on what. A figure is what `figure`
 * makes of the requests of a second. */
export function fioContender(
  name: string,
  workload: Workload,
  words: readonly string[],
  figure: (rate: number) => number,
): Contender {
  return {
    name,
    async measure(seconds) {
      const runtime = [`--runtime=${Math.max(1, Math.round(seconds))}`, "--time_based"];
      return figure(await fio([...wordsOf(workload), ...runtime, ...words]));
    },
  };
}

/** Requests of a second, of all jobs together. */
export async function fio(words: readonly string[]): Promise<number> {
  const { stdout } = await promisify(execFile)("fio", [...common, ...words]);
  return fioJobs(stdout).reduce((sum, { read, write }) => sum + read.iops + write.iops, 0);
}

const common = [
  "--name=bench",
  "--output-format=json",
  "--thread",
  "--invalidate=0",
  // It need not note where it has been, nor can it then verify; we do neither.
  "--norandommap",
  "--randrepeat=0",
  "--group_reporting",
];

function wordsOf({ readPercent, blockBytes, depth }: Workload): string[] {
  const mixed = readPercent > 0 && readPercent < 100;
  const pattern = mixed ? "randrw" : readPercent === 100 ? "randread" : "randwrite";
  return [
    `--rw=${pattern}`,
    ...(mixed ? [`--rwmixread=${readPercent}`] : []),
    `--bs=${blockBytes}`,
    `--iodepth=${depth}`,
    `--size=${DATA_BYTES - (DATA_BYTES % blockBytes)}`,
  ];
}
