/**
 * DISK as a person types it: `[DRIVER] NAME [key=value ...]`, several of them in a row for `serve`, one word of
 * them for `copy`.
 */
import { existsSync } from "node:fs";
import { nearest } from "../util/nearest.ts";
import { UsageError } from "./errors.ts";

const PARAMETER = /^[a-z][a-z0-9-]*=/;

/**
 * Cuts the words of several disks apart. A driver's name begins a disk, and so does a bare word where the disk
 * before has its bare word already; `key=value` belongs to the disk before it. A file that has the name of a driver
 * is written `./memory`.
 */
export function groupDisks(words: readonly string[], drivers: ReadonlySet<string>): string[][] {
  const groups: string[][] = [];
  let bareWords = 0;
  for (const word of words) {
    const parameter = PARAMETER.test(word);
    if (groups.length > 0 && (parameter || (bareWords === 0 && !drivers.has(word)))) {
      if (!parameter) bareWords++;
      groups.at(-1)!.push(word);
      continue;
    }
    groups.push([word]);
    bareWords = drivers.has(word) || parameter ? 0 : 1;
  }
  return groups;
}

/** The words of a disk given as one word: "disk.img", "nbd://host", "memory 1G", "file disk.img direct=on". */
export function splitDisk(word: string, drivers: ReadonlySet<string>): string[] {
  if (existsSync(word)) return [word];
  const words = word.split(/\s+/).filter((part) => part !== "");
  return words.length > 1 && (drivers.has(words[0]!) || PARAMETER.test(words[1]!)) ? words : [word];
}

/** A bare word that is no file but nearly a driver is a slip, not a file that is missing. */
export function checkName(words: readonly string[], drivers: ReadonlySet<string>): void {
  const [name] = words;
  if (name === undefined || drivers.has(name) || existsSync(name)) return;
  const driver = nearest(name, drivers);
  if (driver === undefined) return;
  throw new UsageError(`there is neither a driver nor a file "${name}"; did you mean "${driver}"?`);
}
