/** What a frontend counts, over all rings that it has had. */
import { type FreezeCounts, freezeCounts } from "./freeze.ts";

export interface FrontendCounters {
  /** Commands put on the rings. */
  requests: number;
  responses: number;
  /** Requests of callers that went along in the command of another (Linux: read and write merges, iostat's rrqm and
   * wrqm). */
  merged: number;
  /** Times that sending stopped, by reason. */
  readonly freezes: FreezeCounts;
  /** Bytes copied between callers' memory and granted pages. */
  copiedBytes: number;
  /** Commands that failed, but for those whose requests are tried one by one. */
  errors: number;
}

export function frontendCounters(): FrontendCounters {
  return {
    requests: 0,
    responses: 0,
    merged: 0,
    freezes: freezeCounts(),
    copiedBytes: 0,
    errors: 0,
  };
}
