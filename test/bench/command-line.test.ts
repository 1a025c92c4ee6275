import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { groups } from "../../bench/groups.ts";
import { chart } from "../../bench/harness/chart.ts";
import { parseBenchOptions } from "../../bench/harness/command-line.ts";
import type { Group } from "../../bench/harness/group.ts";
import { writeTables } from "../../bench/harness/page.ts";
import { figuresOf, type RowResult, verdict } from "../../bench/harness/rounds.ts";

test("a group, and a row of it, can be measured alone", () => {
  const rowsOf = (...words: string[]) =>
    parseBenchOptions(words, groups).wanted.map(({ group, rows }) => [group.name, rows.length]);
  assert.deepEqual(rowsOf("pipeline", "4k-read-32"), [["pipeline", 1]]);
  assert.equal(rowsOf("pipeline").length, 1);
  assert.equal(rowsOf().length, groups.length);
});

test("words that name nothing are refused with what was meant", () => {
  const refusal = (...words: string[]) => {
    try {
      parseBenchOptions(words, groups);
    } catch (error) {
      return (error as Error).message;
    }
    return undefined;
  };
  assert.match(refusal("pipelin")!, /no group "pipelin".*pipeline/);
  assert.match(refusal("pipeline", "4k-read-31")!, /no row of pipeline "4k-read-31".*4k-read-/);
  assert.match(refusal("--rounds", "4")!, /from 5 on/);
  assert.match(refusal("--seconds", "0.5")!, /whole number/);
});

test("every row has a name of its own, and aims about contenders that have a column", () => {
  for (const { rows, columns } of groups) {
    assert.equal(new Set(rows.map(({ name }) => name)).size, rows.length);
    for (const { aims } of rows) {
      const peers = aims.flatMap((aim) => ("against" in aim ? aim.against : []));
      assert.deepEqual(
        peers.filter((peer) => !columns.includes(peer)),
        [],
      );
    }
  }
});

const group: Group = {
  name: "some",
  summary: "ours & <theirs>",
  columns: ["ours", "theirs"],
  rows: [],
};
const contenders = [
  figuresOf("ours", [12_000, 11_000, 13_000]),
  figuresOf("theirs", [10_000, 10_000, 10_000]),
];
const result: RowResult = {
  name: "row",
  summary: "a row",
  unit: "IOPS",
  lessIsBetter: false,
  contenders: contenders.map((each) => ({ ...each, rounds: [each.median] })),
  verdicts: [verdict({ against: ["theirs"], least: 1.1 }, contenders, false)],
};

test("a picture says what it shows, and its text is escaped", () => {
  const picture = chart(group, [result], "two cores");
  for (const words of ["a row", "12k", "10k", "two cores", "ours &#38; &#60;theirs&#62;"]) {
    assert.ok(picture.includes(words), words);
  }
  assert.equal(picture.match(/<rect/g)!.length, 5);
});

test("a page gets the tables of a run in their places, and keeps all else", () => {
  const folder = mkdtempSync(join(tmpdir(), "vbdkit-page-"));
  try {
    const page = join(folder, "page.md");
    writeFileSync(page, "before\n<!-- bench some -->\nold\n<!-- end -->\nafter\n");
    writeTables(page, [{ group, results: [result] }], "two cores");
    const text = readFileSync(page, "utf8");
    assert.match(text, /^before\n<!-- bench some -->\n\|/);
    assert.match(
      text,
      /\| a row \(IOPS\) \| 12k ±8% \| 10k ±0% \| 1\.20 of theirs \| 1\.1 \| met \|/,
    );
    assert.match(text, /<!-- end -->\nafter\n$/);
    assert.doesNotMatch(text, /old/);
    assert.throws(() => {
      writeTables(page, [{ group: { ...group, name: "other" }, results: [] }], "");
    }, /no place for the table of other/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
