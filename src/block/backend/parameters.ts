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
import { describeRange, limitInRange, type ParameterOf, parseLimit } from "../parameters.ts";

type FieldsOf<T> = {
  [K in keyof BackendLimits]: BackendLimits[K] extends T ? K : never;
}[keyof BackendLimits];

export type BackendParameter = ParameterOf<
  Exclude<FieldsOf<number>, "sectorSize">,
  FieldsOf<boolean>,
  "sectorSize" | "grants" | "dialect"
>;

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
    name: "grants",
    field: "grants",
    kind: "choice",
    choices: ["auto", "map", "copy"],
    help: "How pages are reached that are not kept.",
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
    const allowed = limitInRange(parameter, value) ?? defaultBackendLimits[field];
    if (allowed !== value) {
      note(`${name}=${value} is not ${describeRange(parameter)}: taken as ${allowed}`);
    }
    limits[field] = allowed;
  }
  if (limits.grants === "copy") limits.persistent = false;
  if (limits.maxQueues === 0) limits.maxQueues = Math.min(Math.max(1, cpus), MAX_QUEUES);
  return limits as unknown as BackendLimits;
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
    const value = parseLimit(parameter, text.trim());
    if (value === undefined) {
      throw new Error(`${name}=${text} is not ${describeRange(parameter)}`);
    }
    limits[parameter.field] = value;
  }
  return limits as Partial<BackendLimits>;
}
