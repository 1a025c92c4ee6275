/** Parameters that several drivers and filters declare in the same words. */
import { parseDuration } from "../util/duration.ts";
import { parseSize } from "../util/size.ts";
import type { Parameter } from "./parameters.ts";

/** Bytes. Every guest counts its disk in these. */
export const SECTOR_SIZE = 512;

/** A required size of a disk, in bytes: whole sectors, at least one. */
export const sizeParameter: Parameter<number> = {
  help: "Size of the disk: bytes, or 512K, 1G, 1.5T; a multiple of 512.",
  value: "SIZE",
  parse: parseDiskSize,
};

function parseDiskSize(text: string): number {
  const size = parseSize(text);
  if (size === 0) throw new Error("a disk of 0 bytes is none; write 512 or more");
  if (size % SECTOR_SIZE === 0) return size;
  const down = size - (size % SECTOR_SIZE);
  const up = down + SECTOR_SIZE;
  const near = down === 0 ? `${up}` : `${down} or ${up}`;
  throw new Error(`no whole number of 512-byte sectors; write ${near}`);
}

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
