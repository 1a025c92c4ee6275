/** What `vbdkit bench` can be asked for, in fio's words where fio has one. The command itself needs no more than this to say
 * so, and loads no driver for it. */
import type { DiskOptions } from "./options.ts";

/** What each of fio's words means, and how it reads in a sentence. */
export const benchPatterns = {
  read: { random: false, reads: true, writes: false, words: "sequential reads" },
  write: { random: false, reads: false, writes: true, words: "sequential writes" },
  randread: { random: true, reads: true, writes: false, words: "random reads" },
  randwrite: { random: true, reads: false, writes: true, words: "random writes" },
  rw: { random: false, reads: true, writes: true, words: "sequential reads and writes" },
  randrw: { random: true, reads: true, writes: true, words: "random reads and writes" },
} as const;
export type BenchPattern = keyof typeof benchPatterns;

/** Requests in flight: more than any ring of ours holds. */
export const MAX_DEPTH = 4096;

export interface BenchOptions extends DiskOptions {
  filter?: string[];
  rw: BenchPattern;
  /** Bytes. */
  bs: number;
  iodepth: number;
  /** Milliseconds. */
  runtime: number;
  /** Milliseconds. */
  rampTime: number;
  /** Bytes. */
  size?: number;
  rwmixread?: number;
  destroyData?: true;
  ring: boolean;
  json?: true;
}
