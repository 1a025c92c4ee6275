/** Parameters that several drivers and filters declare in the same words. */
import { parseDuration } from "../util/duration.ts";
import { parseSize } from "../util/size.ts";
import type { Parameter } from "./parameters.ts";

/** A required size of a disk, in bytes. */
export const sizeParameter: Parameter<number> = {
  help: "Size of the disk: bytes, or 512K, 1G, 1.5T.",
  value: "SIZE",
  parse: parseSize,
};

/** An optional time, in milliseconds. */
export function timeParameter(help: string): Parameter<number> {
  return { help, value: "TIME", optional: true, parse: parseDuration };
}

/** on|off, as well as nbdkit's other words for them. */
export function switchParameter(help: string, byDefault: boolean): Parameter<boolean> {
  return { help, value: "on|off", default: byDefault, parse: parseSwitch };
}

function parseSwitch(text: string): boolean {
  if (/^(on|true|yes|1)$/i.test(text)) return true;
  if (/^(off|false|no|0)$/i.test(text)) return false;
  throw new Error("write on or off");
}
