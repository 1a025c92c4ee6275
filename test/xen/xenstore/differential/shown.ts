/** Operations, answers and events as they are compared and shown. */
import { XS_CONTROL, XS_DIRECTORY_PART } from "../../../../src/wire/xenstore.ts";
import type { Operation } from "./operations.ts";
import type { Answer, Event } from "./stream-client.ts";

/** Of a list of children: there is room for them whatever its generation. */
const PART_BYTES = 4000;

export function describe({ name, type, transactionId, payload }: Operation): string {
  return `${name} (${type}) in ${transactionId}: ${JSON.stringify(payload).slice(0, 200)}`;
}

export function show({ type, requestId, transactionId, text }: Answer): string {
  const shown = type === XS_DIRECTORY_PART ? shownPart(text) : shownControl(type, text);
  return `${type} ${requestId} ${transactionId} ${JSON.stringify(shown)}`;
}

/** The generation of a list of children is a number that changes with it, and no more. As long as it is, as much less of
 * the list fits. */
function shownPart(text: string): string {
  const names = text.replace(/^\d+/, "");
  return names.length < PART_BYTES
    ? names
    : names.slice(0, names.lastIndexOf("\0", PART_BYTES) + 1);
}

/** Of what CONTROL tells: names and numbers. Memory is counted in another way, and nobody waits for an answer now. */
function shownControl(type: number, text: string): string {
  if (type !== XS_CONTROL || !text.includes(":")) return text;
  const lines = text.split("\n").filter((line) => !/^(memory|outstanding) *:/.test(line));
  return lines.map((line) => line.replace(/(: +\d+).*/, "$1")).join();
}

export function firsts(events: readonly Event[]): string[] {
  const seen = new Set<string>();
  const found: string[] = [];
  for (const { text, answersBefore } of events) {
    if (seen.has(text)) continue;
    seen.add(text);
    found.push(`${answersBefore} ${JSON.stringify(text)}`);
  }
  return found;
}
