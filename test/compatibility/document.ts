/** docs/compatibility.md, made of the rows of the protocol and of what the tests of a run said that they show. */
import { globSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import type { ShownRows } from "../../src/testing/index.ts";
import { type Row, rows, sections } from "./rows.ts";

const root = join(import.meta.dirname, "../..");
/** Tests named for a row; a row may have dozens. */
const TESTS_NAMED = 2;

export interface Compatibility {
  readonly text: string;
  /** Rows that no test of the run shows, though they say nothing of why. */
  readonly missing: readonly string[];
  /** Rows that tests claim to show and that do not exist. */
  readonly unknown: readonly string[];
}

/** What the processes of a run left in a folder (scripts/shown-rows.ts). */
export function readShown(folder: string): ShownRows[] {
  return globSync("*.jsonl", { cwd: folder }).flatMap((file) =>
    readFileSync(join(folder, file), "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as ShownRows),
  );
}

export function compatibility(shown: readonly ShownRows[]): Compatibility {
  const tests = new Map<string, Set<string>>();
  for (const { rows: ids, test, file } of shown) {
    const path = file === undefined ? "" : relative(root, file);
    for (const id of ids) {
      const known = tests.get(id) ?? new Set();
      // A seed is another one in each run.
      const sentence = test.replace(/ \(seed [^)]*\)/, "");
      tests.set(id, known.add(path === "" ? sentence : `[${sentence}](../${path})`));
    }
  }
  const missing = [...rows.values()]
    .filter(({ id, notShown }) => notShown === undefined && !tests.has(id))
    .map(({ id }) => id);
  const unknown = [...tests.keys()].filter((id) => !rows.has(id)).sort();
  return { text: document(tests), missing, unknown };
}

function document(tests: ReadonlyMap<string, ReadonlySet<string>>): string {
  return [
    "# Compatibility",
    "",
    "Every row of the block protocol: what there is in the field, what we do about it, and tests that show it.",
    "This page is made by a run of all tests (`npm run compatibility`); each test says itself which rows it shows,",
    "once it has passed.",
    ...sections.flatMap((section) => [
      "",
      `## ${section.title}`,
      "",
      "| row | what | what we do | shown by |",
      "|---|---|---|---|",
      ...section.rows.map((row) => line(row, [...(tests.get(row.id) ?? [])].sort())),
    ]),
    "",
  ].join("\n");
}

function line({ id, item, ours, notShown }: Row, names: readonly string[]): string {
  const more = names.length - TESTS_NAMED;
  const named = names.slice(0, TESTS_NAMED).join("; ") + (more > 0 ? `; and ${more} more` : "");
  return `| ${[id, item, ours, named || (notShown ?? "")].map(cell).join(" | ")} |`;
}

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");
