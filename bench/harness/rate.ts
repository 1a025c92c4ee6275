/** What requests of a second are told as: how many, where each is one page; where they are larger, their bytes tell more. */
import { PAGE_BYTES } from "./stamps.ts";

export interface Rate {
  readonly unit: "IOPS" | "MiB/s";
  /** Of the requests of a second. */
  readonly figure: (requests: number) => number;
}

export function rateOf(blockBytes: number): Rate {
  if (blockBytes === PAGE_BYTES) return { unit: "IOPS", figure: (requests) => requests };
  return { unit: "MiB/s", figure: (requests) => (requests * blockBytes) / 2 ** 20 };
}
