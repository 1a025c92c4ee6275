/**
 * The parameters of a backend under the names that Linux's xen-blkback module gives them, and ours beside them: one table
 * that the limits are brought into their ranges by, that text is parsed with, and that help can be written from.
 */
import { didYouMean } from "../../util/nearest.ts";
import {
  type BackendLimits,
  defaultBackendLimits,
  dialects,
  MAX_INDIRECT_SEGMENTS,
  MAX_QUEUES,
  MAX_RING_PAGE_ORDER,
} from "../features.ts";

type FieldsOf<T> = {
  [K in keyof BackendLimits]: BackendLimits[K] extends T ? K : never;
}[keyof BackendLimits];

interface Common {
  /** As typed: `max_queues`. */
  readonly name: string;
  /** One line, a sentence. */
  readonly help: string;
}
export type BackendParameter = Common &
  (
    | {
        readonly kind: "number";
        readonly field: Exclude<FieldsOf<number>, "sectorSize">;
        readonly minimum: number;
        readonly maximum: number;
      }
    | { readonly kind: "switch"; readonly field: FieldsOf<boolean> }
    | {
        readonly kind: "choice";
        readonly field: "sectorSize" | "dialect";
        readonly choices: readonly (string | number)[];
      }
  );

/** Pages; 256 MiB of a peer mapped by one ring. */
const MAX_PAGES = 65_536;
/** A day. */
const MAX_UNUSED_SECONDS = 86_400;

export const backendParameters: readonly BackendParameter[] = [
  {
    name: "max_buffer_pages",
    field: "maxBufferPages",
    kind: "number",
    minimum: 0,
    maximum: MAX_PAGES,
    help: "Pages mapped at once for a ring's requests, beside those kept.",
  },
  {
    name: "max_persistent_grants",
    field: "maxPersistentGrants",
    kind: "number",
    minimum: 0,
    maximum: MAX_PAGES,
    help: "Pages of a ring kept mapped from request to request.",
  },
  {
    name: "persistent_grant_unused_seconds",
    field: "persistentGrantUnusedSeconds",
    kind: "number",
    minimum: 0,
    maximum: MAX_UNUSED_SECONDS,
    help: "A kept page goes back after so long without use; 0 for never.",
  },
  {
    name: "max_queues",
    field: "maxQueues",
    kind: "number",
    minimum: 0,
    maximum: MAX_QUEUES,
    help: "Rings of a virtual disk; 0 for one per CPU.",
  },
  {
    name: "max_ring_page_order",
    field: "maxRingPageOrder",
    kind: "number",
    minimum: 0,
    maximum: MAX_RING_PAGE_ORDER,
    help: "A ring has at most 2 to this power pages.",
  },
  {
    name: "max_indirect_segments",
    field: "maxIndirectSegments",
    kind: "number",
    minimum: 0,
    maximum: MAX_INDIRECT_SEGMENTS,
    help: "Segments of an indirect request; 0 offers none.",
  },
  {
    name: "feature_persistent",
    field: "persistent",
    kind: "switch",
    help: "Offer persistent grants.",
  },
  {
    name: "discard",
    field: "discard",
    kind: "switch",
    help: "Offer discard, where the disk can.",
  },
  {
    name: "log_stats",
    field: "logStats",
    kind: "switch",
    help: "Report each ring's statistics every ten seconds.",
  },
  {
    name: "sector_size",
    field: "sectorSize",
    kind: "choice",
    choices: [512, 4096],
    help: "Logical block offered, in bytes.",
  },
  {
    name: "dialect",
    field: "dialect",
    kind: "choice",
    choices: Object.keys(dialects),
    help: "What counts as a sector where the logical block is not 512 bytes.",
  },
];

/** `number from 0 to 4`, `0 or 1`, `512 or 4096`: what a value must be. */
export function describeRange(parameter: BackendParameter): string {
  switch (parameter.kind) {
    case "number":
      return `a number from ${parameter.minimum} to ${parameter.maximum}`;
    case "switch":
      return "0 or 1";
    case "choice":
      return parameter.choices.join(", ").replace(/, ([^,]*)$/, " or $1");
  }
}

/** Limits that are given, or the defaults, each in its range; `note` hears of every one that was not. `cpus` is what
 * max_queues=0 stands for. */
export function backendLimits(
  given: Partial<BackendLimits>,
  cpus: number,
  note: (message: string) => void,
): BackendLimits {
  const limits: Record<string, unknown> = { ...defaultBackendLimits, ...given };
  for (const parameter of backendParameters) {
    const { name, field } = parameter;
    const value = limits[field];
    const allowed = inRange(parameter, value);
    if (allowed !== value) {
      note(`${name}=${value} is not ${describeRange(parameter)}: taken as ${allowed}`);
    }
    limits[field] = allowed;
  }
  if (limits.maxQueues === 0) limits.maxQueues = Math.min(Math.max(1, cpus), MAX_QUEUES);
  return limits as unknown as BackendLimits;
}

function inRange(parameter: BackendParameter, value: unknown): number | boolean | string {
  const fallback = defaultBackendLimits[parameter.field];
  switch (parameter.kind) {
    case "number":
      if (typeof value !== "number" || Number.isNaN(value)) return fallback;
      return Math.min(Math.max(Math.trunc(value), parameter.minimum), parameter.maximum);
    case "switch":
      return typeof value === "boolean" ? value : fallback;
    case "choice":
      return parameter.choices.find((choice) => choice === value) ?? fallback;
  }
}

/** Limits from texts by the names of the table. Throws an Error that says what is wrong with `NAME=TEXT`; a number that
 * is out of its range is not wrong but, as in Linux, brought into it, later. */
export function parseBackendParameters(
  texts: Readonly<Record<string, string>>,
): Partial<BackendLimits> {
  const limits: Record<string, unknown> = {};
  for (const [name, text] of Object.entries(texts)) {
    const parameter = backendParameters.find((each) => each.name === name);
    if (parameter === undefined) {
      const names = backendParameters.map((each) => each.name);
      throw new Error(`a backend has no parameter "${name}"${didYouMean(name, names)}`);
    }
    const value = parseValue(parameter, text.trim());
    if (value === undefined) {
      throw new Error(`${name}=${text} is not ${describeRange(parameter)}`);
    }
    limits[parameter.field] = value;
  }
  return limits as Partial<BackendLimits>;
}

function parseValue(
  parameter: BackendParameter,
  text: string,
): number | boolean | string | undefined {
  switch (parameter.kind) {
    case "number":
      return /^-?\d{1,15}$/.test(text) ? Number(text) : undefined;
    case "switch":
      // The kernel takes all of these for a module's bool.
      if (/^(?:1|y|yes|on|true)$/i.test(text)) return true;
      return /^(?:0|n|no|off|false)$/i.test(text) ? false : undefined;
    case "choice":
      return parameter.choices.find((choice) => String(choice) === text);
  }
}
