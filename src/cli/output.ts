/** What commands print: text, tables, plain data as indented fields, JSON. Colour is the terminal's, never a pipe's. */
import { subscribe } from "node:diagnostics_channel";
import { type InspectColor, styleText } from "node:util";
import { ExitCode, report, systemMessage } from "./errors.ts";

/** Colours only where standard output is a terminal and NO_COLOR is not set. */
export function paint(colour: InspectColor, text: string): string {
  return styleText(colour, text, { stream: process.stdout });
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Something that a person should know, on standard error. */
export function printNote(message: string): void {
  process.stderr.write(`vbdkit: note: ${message}\n`);
}

/** What the library does without, and says on this channel, a person should know. */
export function showNotes(): void {
  subscribe("vbdkit:note", (note) => printNote((note as { message: string }).message));
}

export function printJson(value: unknown): void {
  print(jsonText(value));
}

/** Counts by reason of a frontend. Reasons are words for people ("command shortage"), and keys like all others in JSON:
 * commandShortage. */
const BY_REASON: ReadonlySet<string> = new Set(["freezes", "waits"]);

export function jsonText(value: unknown): string {
  const shown = (key: string, held: unknown) =>
    BY_REASON.has(key) ? camelCased(held as object) : plain(key, held);
  return JSON.stringify(value, shown, 2);
}

function camelCased(counts: object): object {
  const named = (words: string) =>
    words.replaceAll(/ ([a-z])/g, (_, letter: string) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(counts).map(([words, count]) => [named(words), count]));
}

/** Sets become arrays, so that JSON shows them. */
export function plain(_key: string, value: unknown): unknown {
  return value instanceof Set ? [...value] : value;
}

/** What to do when whoever reads our standard output has gone: `| head -1` (EPIPE), a terminal that was closed (EIO).
 * Nothing is said in any case. What cannot be written for another reason (a full disk) ends the process with a line. */
export function onClosedPipe(act: () => void): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.removeAllListeners("error");
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EPIPE" || error.code === "EIO") return act();
      // A server goes on without its log.
      if (stream === process.stderr) return;
      report(new Error(`standard output: ${systemMessage(error)}`));
      process.exit(ExitCode.failure);
    });
  }
}

/** Node makes a pipe non-blocking, for everyone who holds it. A program that shares ours and writes at the same time (the
 * client that started us) would meet EAGAIN; this makes the pipes what they were. */
export function keepPipesBlocking(): void {
  for (const stream of [process.stdout, process.stderr]) {
    const { _handle: handle } = stream as { _handle?: { setBlocking?(blocking: boolean): void } };
    handle?.setBlocking?.(true);
  }
}

/** Rows with their columns aligned, two spaces between; the last column is left ragged. */
export function table(rows: readonly (readonly string[])[], indent = ""): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    }
  }
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column]!)))
      .join("  ");
  return rows.map((row) => indent + line(row)).join("\n");
}

/** Plain data as `name  value` lines, nested data indented below its name: `maxSegments` reads `max segments`. */
export function fields(data: object, indent = ""): string {
  const simple: string[][] = [];
  const nested: string[] = [];
  for (const [name, value] of Object.entries(data)) {
    if (value === undefined) continue;
    const label = name.replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
    const list = value instanceof Set ? [...value] : value;
    if (Array.isArray(list) && list.every((item) => typeof item !== "object")) {
      simple.push([label, list.join(", ") || "none"]);
    } else if (Array.isArray(list)) {
      for (const [index, item] of list.entries()) {
        nested.push(`${indent}${label} ${index}`, fields(item as object, `${indent}  `));
      }
    } else if (typeof list === "object" && list !== null) {
      if (Object.keys(list).length === 0) continue;
      nested.push(`${indent}${label}`, fields(list as object, `${indent}  `));
    } else simple.push([label, scalar(list)]);
  }
  const head = simple.length === 0 ? [] : [table(simple, indent)];
  return [...head, ...nested].join("\n");
}

function scalar(value: unknown): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return value.toLocaleString("en-US");
  return String(value);
}
