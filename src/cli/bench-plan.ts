/** What `vbdkit bench` was asked for, as plain data; fio's words where fio has one. What only the opened disk can tell (its
 * size, its blocks) is looked at when it is open. */
import type { EngineChoice, StoreSpec } from "../store/block-store.ts";
import { formatSize } from "../util/size.ts";
import { type AttachSettings, settingsOf, unlocked } from "./attach-request.ts";
import { type BenchOptions, type BenchPattern, benchPatterns } from "./bench-options.ts";
import { driverNames } from "./catalogue.ts";
import { checkName } from "./disks.ts";
import { UsageError } from "./errors.ts";

/** Bytes of data in flight, which all lie in memory. */
const MAX_IN_FLIGHT_BYTES = 2 ** 30;
/** fio's. */
const DEFAULT_READ_PERCENT = 50;

export interface BenchWorkload {
  readonly rw: BenchPattern;
  readonly random: boolean;
  /** Of a hundred requests; the others write. */
  readonly readPercent: number;
  readonly blockBytes: number;
  /** Requests in flight. */
  readonly depth: number;
}

export interface BenchPlan {
  /** The disk as it was typed. */
  readonly text: string;
  readonly spec: StoreSpec;
  readonly engine: EngineChoice;
  /** What both ends of the ring are told; undefined where there is to be none. */
  readonly ring: AttachSettings | undefined;
  readonly workload: BenchWorkload;
  /** Of the disk, from its beginning; all if undefined. */
  readonly bytes: number | undefined;
  readonly runtimeMilliseconds: number;
  /** So long it runs before anything is counted. */
  readonly rampMilliseconds: number;
}

/** Throws UsageError or StoreError("EINVAL"). */
export async function benchPlan(
  words: readonly string[],
  options: BenchOptions,
): Promise<BenchPlan> {
  const workload = workloadOf(options);
  if (options.runtime <= 0) throw new UsageError("--runtime: write how long to measure, as 5s");
  const { parseDisk } = await import("../index.ts");
  checkName(words, driverNames());
  const spec = parseDisk(words, options.filter);
  return {
    text: words.join(" "),
    spec: options.shared ? unlocked(spec) : spec,
    engine: options.engine,
    ring: options.ring ? settingsOf(options) : undefined,
    workload,
    bytes: options.size,
    runtimeMilliseconds: options.runtime,
    rampMilliseconds: options.rampTime,
  };
}

function workloadOf({ rw, bs, iodepth, rwmixread, destroyData }: BenchOptions): BenchWorkload {
  const { random, reads, writes } = benchPatterns[rw];
  if (writes && destroyData === undefined) {
    throw new UsageError(
      `--rw ${rw} overwrites the disk, and what is on it is lost: say --destroy-data if that is all right`,
    );
  }
  if (rwmixread !== undefined && !(reads && writes)) {
    throw new UsageError(`--rwmixread is of --rw rw and randrw, not of ${rw}`);
  }
  if (bs * iodepth > MAX_IN_FLIGHT_BYTES) {
    const most = formatSize(MAX_IN_FLIGHT_BYTES);
    throw new UsageError(`--bs times --iodepth is more than ${most}: make either smaller`);
  }
  const mixed = rwmixread ?? DEFAULT_READ_PERCENT;
  const readPercent = reads && writes ? mixed : reads ? 100 : 0;
  return { rw, random, readPercent, blockBytes: bs, depth: iodepth };
}

/** "random reads of 4 KiB, 32 in flight" */
export function describeWorkload({ rw, blockBytes, depth, readPercent }: BenchWorkload): string {
  const { reads, writes, words } = benchPatterns[rw];
  const mix = reads && writes ? ` (${readPercent} % read)` : "";
  return `${words}${mix} of ${formatSize(blockBytes)}, ${depth} in flight`;
}
