/**
 * The checks on what the other side of a ring says, each as an edit of our sources that takes it out: what a check costs is
 * the difference to the same program without it. trusting.ts edits sources while they are loaded, in a process that
 * measures and does nothing else.
 *
 * Invariant: an edit that does not fit its source any more is an error, so that no row measures nothing.
 */

export type Check =
  | "check-indexes"
  | "check-requests"
  | "check-ranges"
  | "check-responses"
  | "check-events";

interface Edit {
  /** Below src. */
  readonly module: string;
  readonly from: string;
  readonly to: string;
}

const checks: Readonly<Record<Check, readonly Edit[]>> = {
  "check-indexes": [
    edit("ring/back-ring.ts", "if (count < counted || count > room) {", "if (false) {"),
    edit("ring/front-ring.ts", "if (count < counted || count > asked) {", "if (false) {"),
  ],
  "check-requests": [
    without("block/backend/request.ts", "if (count > maximum) return BrokenRule.segmentCount;"),
    without(
      "block/backend/request.ts",
      "if (count === 0 && (indirect || !isFlush)) return BrokenRule.segmentCount;",
    ),
    without(
      "block/backend/request.ts",
      "if (count > 0 && facts.readOnly && into.operation !== BLKIF_OP_READ) return BrokenRule.readOnly;",
    ),
    without(
      "block/backend/request.ts",
      "if ((last + 1) * unit > SECTORS_PER_PAGE || last < first) return BrokenRule.segmentSectors;",
    ),
    without(
      "block/backend/request.ts",
      "if (length % facts.sectorsPerBlock !== 0) return BrokenRule.alignment;",
    ),
    without(
      "block/backend/request.ts",
      "if (into.sector + sectors > facts.sectors) return BrokenRule.endOfDevice;\n" +
        "  if (into.sector % facts.sectorsPerBlock !== 0) return BrokenRule.alignment;",
    ),
  ],
  "check-ranges": [
    edit("store/check-request.ts", "if (operation === Operation.flush) return 0;", "return 0;"),
  ],
  "check-responses": [
    edit(
      "block/frontend/commands.ts",
      "const command = idHigh === 0 ? this.#all[idLow] : undefined;\n" +
        "    return command?.state === CommandState.busy ? command : undefined;",
      "return this.#all[idLow];",
    ),
    edit(
      "block/frontend/queue.ts",
      "if (response.operation !== command.operation) {",
      "if (false) {",
    ),
  ],
  "check-events": [
    edit("xen/event-guard.ts", "ended(useful: boolean): void {", "ended(useful) { return;"),
  ],
};

export const allChecks: readonly Check[] = Object.keys(checks) as Check[];

function edit(module: string, from: string, to: string): Edit {
  return { module, from, to };
}

function without(module: string, from: string): Edit {
  return edit(module, from, "");
}

/** Modules below src that are edited for these checks. */
export function editedModules(names: readonly Check[]): Set<string> {
  return new Set(editsOf(names).map(({ module }) => module));
}

/** The source of a module without these checks. Throws where one of them is not in it, or in it twice. */
export function withoutChecks(module: string, source: string, names: readonly Check[]): string {
  for (const { module: edited, from, to } of editsOf(names)) {
    if (edited !== module) continue;
    const parts = source.split(from);
    if (parts.length !== 2) throw new Error(`${module} does not have this once: ${from}`);
    source = parts.join(to);
  }
  return source;
}

function editsOf(names: readonly Check[]): readonly Edit[] {
  return names.flatMap((name) => checks[name]);
}
