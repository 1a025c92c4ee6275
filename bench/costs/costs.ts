/** What single things cost: ring and codec, an event, a connection, an idle disk, a busy one among others, a filter. */
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ChildContender, freshChild } from "../harness/child.ts";
import type { Aim, Group, OpenedRow, Row } from "../harness/group.ts";
import { allChecks, type Check } from "./checks.ts";

/** What the child does (costs-process.ts), and how often or with how many. */
export interface Cost {
  readonly what:
    | "ring"
    | "events"
    | "requests"
    | "connect"
    | "idle-memory"
    | "idle-wake-ups"
    | "busy";
  /** Requests in flight on each disk. */
  readonly depth?: number;
  readonly vbds?: number;
  readonly queues?: number;
  /** Filters before the disk that do nothing. */
  readonly filters?: number;
  readonly persistent?: boolean;
  /** Checks on the other side's data that are left out. */
  readonly trusting?: readonly Check[];
}

interface CostRow extends Pick<Row, "summary" | "unit" | "short"> {
  readonly lessIsBetter: boolean;
  readonly ours: Cost;
  /** The same without what the row is about. */
  readonly without?: Cost;
  readonly aims?: readonly Aim[];
}

const OURS = "vbdkit";
const WITHOUT = "without it";

const told: readonly Aim[] = [{ against: [WITHOUT] }];

const costRows: Readonly<Record<string, CostRow>> = {
  ring: less("a request and its response through ring and codec, both ends", "ns", {
    what: "ring",
  }),
  "request-1": less("a 4 KiB read from a disk in memory, the whole way, depth 1", "ns", {
    what: "requests",
    depth: 1,
  }),
  "request-32": less("the same, depth 32", "ns", { what: "requests", depth: 32 }),
  "events-1": less("events of both ends for a request, depth 1", "events", {
    what: "events",
    depth: 1,
  }),
  "events-32": less("the same, depth 32", "events", { what: "events", depth: 32 }),
  "connect-1": less("a disk connects", "ms", { what: "connect", vbds: 1 }),
  "connect-64": less("64 disks of 16 guests connect at once", "ms", { what: "connect", vbds: 64 }),
  "connect-256": {
    ...less("256 disks of 64 guests connect at once", "ms", { what: "connect", vbds: 256 }),
    aims: [{ most: 2000 }],
  },
  "idle-memory": {
    ...less("memory of an idle disk, of 64", "KiB", {
      what: "idle-memory",
      vbds: 64,
    }),
    aims: [{ most: 256 }],
  },
  "idle-wake-ups": {
    ...less("wake-ups of 64 idle disks in a second", "times", { what: "idle-wake-ups", vbds: 64 }),
    aims: [{ most: 0 }],
  },
  "busy-1": more("a busy disk, depth 8", { what: "busy", vbds: 1, depth: 8 }),
  "busy-4": more("4 busy disks together", { what: "busy", vbds: 4, depth: 8 }),
  "busy-16": more("16 busy disks together", { what: "busy", vbds: 16, depth: 8 }),
  "busy-64": more("64 busy disks together", { what: "busy", vbds: 64, depth: 8 }),
  queues: {
    ...more("a second queue, depth 32", { what: "busy", depth: 32, queues: 2 }),
    without: { what: "busy", depth: 32 },
    aims: told,
  },
  persistent: {
    ...more("persistent grants, depth 32", { what: "busy", depth: 32 }),
    without: { what: "busy", depth: 32, persistent: false },
    aims: told,
  },
  filter: {
    ...more("one passive filter more, depth 32", { what: "busy", depth: 32, filters: 1 }),
    without: { what: "busy", depth: 32 },
    aims: [{ against: [WITHOUT], least: 0.97 }],
    short: true,
  },
  "check-indexes": check("the rings' indexes are checked", ["check-indexes"]),
  "check-requests": check("requests and their segments are checked", ["check-requests"]),
  "check-ranges": check("the disk checks ranges once more", ["check-ranges"]),
  "check-responses": check("responses are checked", ["check-responses"]),
  "check-events": check("events that bring nothing are counted", ["check-events"]),
  checks: check("all of these checks", allChecks),
};

/** A read of one page, which costs least, and so the check most. */
function check(summary: string, trusting: readonly Check[]): CostRow {
  const ours: Cost = { what: "requests", depth: 32 };
  return {
    ...less(`${summary}; 4 KiB read from a disk in memory, depth 32`, "ns", ours),
    without: { ...ours, trusting },
    aims: told,
  };
}

function less(summary: string, unit: string, ours: Cost): CostRow {
  return { summary, unit, ours, lessIsBetter: true };
}

function more(summary: string, ours: Cost): CostRow {
  return { summary, unit: "IOPS", ours, lessIsBetter: false };
}

export const costs: Group = {
  name: "costs",
  summary: "what single things cost, where the disk itself costs next to nothing",
  columns: [OURS, WITHOUT],
  rows: Object.entries(costRows).map(([name, row]): Row => {
    const { summary, unit, lessIsBetter, aims = [], short = false } = row;
    return { name, summary, unit, lessIsBetter, aims, short, open: () => openRow(row) };
  }),
};

async function openRow({ ours, without }: CostRow): Promise<OpenedRow> {
  const module = join(import.meta.dirname, "costs-process.ts");
  const trusting = `--import=${pathToFileURL(join(import.meta.dirname, "trusting.ts"))}`;
  if (without !== undefined) {
    const fresh = (name: string, cost: Cost) =>
      freshChild(name, module, cost, cost.trusting === undefined ? [] : [trusting]);
    return {
      contenders: [fresh(OURS, ours), fresh(WITHOUT, without)],
      async [Symbol.asyncDispose]() {},
    };
  }
  const child = await ChildContender.start(OURS, module, ours);
  return { contenders: [child], [Symbol.asyncDispose]: () => child[Symbol.asyncDispose]() };
}
