/** The words of `npm run bench`: parsed, and checked against the groups that there are. */
import { parseArgs } from "node:util";
import { didYouMean } from "../../src/util/nearest.ts";
import type { Group, Row } from "./group.ts";
import { LEAST_ROUNDS, type Measuring } from "./rounds.ts";

export interface BenchOptions {
  readonly wanted: readonly { readonly group: Group; readonly rows: readonly Row[] }[];
  readonly list: boolean;
  readonly measuring: Omit<Measuring, "onprogress">;
  /** Files and folders to be written. */
  readonly json: string | undefined;
  readonly charts: string | undefined;
  readonly page: string | undefined;
  readonly profile: string | undefined;
}

/** Enough to see what is twice as slow as it was. */
const SHORT_ROUNDS = 3;

export function usage(groups: readonly Group[]): string {
  return `npm run bench -- [OPTION...] [GROUP [ROW...]]

  --list            what there is to measure
  --short           two minutes: few rows, ${SHORT_ROUNDS} rounds
  --rounds N        ${LEAST_ROUNDS} if absent, and at least
  --seconds N       of each measurement; 1 if absent
  --json FILE       every figure, for programs
  --charts FOLDER   a picture of each group: GROUP.svg
  --page FILE       the tables of a page that has places for them
  --profile FOLDER  what our processes did, for Chrome's developer tools; slower

Groups: ${groups.map(({ name }) => name).join(", ")}. It ends with 1 where something failed or is below half of all its aims.`;
}

/** Throws an Error that says what is wrong with the words. */
export function parseBenchOptions(words: string[], groups: readonly Group[]): BenchOptions {
  const { values, positionals } = parseArgs({
    args: words,
    allowPositionals: true,
    options: {
      list: { type: "boolean", default: false },
      short: { type: "boolean", default: false },
      rounds: { type: "string" },
      seconds: { type: "string", default: "1" },
      json: { type: "string" },
      charts: { type: "string" },
      page: { type: "string" },
      profile: { type: "string" },
    },
  });
  const rounds = Number(values.rounds ?? (values.short ? SHORT_ROUNDS : LEAST_ROUNDS));
  const least = values.short ? 1 : LEAST_ROUNDS;
  if (!Number.isInteger(rounds) || rounds < least) {
    throw new Error(`--rounds is a whole number from ${least} on`);
  }
  const seconds = Number(values.seconds);
  if (!Number.isInteger(seconds) || seconds < 1) {
    throw new Error("--seconds is a whole number from 1 on, as fio wants it");
  }
  return {
    wanted: wantedRows(positionals, groups, values.short),
    list: values.list,
    measuring: { rounds, seconds, onlyAims: values.short },
    json: values.json,
    charts: values.charts,
    page: values.page,
    profile: values.profile,
  };
}

function wantedRows(words: readonly string[], groups: readonly Group[], short: boolean) {
  const [groupName, ...rowNames] = words;
  const chosen = groupName === undefined ? groups : [named(groupName, groups, "group")];
  return chosen
    .map((group) => ({
      group,
      rows:
        rowNames.length > 0
          ? rowNames.map((name) => named(name, group.rows, `row of ${group.name}`))
          : group.rows.filter((row) => !short || row.short === true),
    }))
    .filter(({ rows }) => rows.length > 0);
}

function named<T extends { readonly name: string }>(
  name: string,
  all: readonly T[],
  what: string,
): T {
  const found = all.find((each) => each.name === name);
  if (found !== undefined) return found;
  const names = all.map((each) => each.name);
  throw new Error(`there is no ${what} "${name}"${didYouMean(name, names)}`);
}
