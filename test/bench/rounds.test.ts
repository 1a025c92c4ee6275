import assert from "node:assert/strict";
import { test } from "node:test";
import type { Contender, Row } from "../../bench/harness/group.ts";
import {
  figuresOf,
  isGross,
  type Measuring,
  measureRow,
  verdict,
} from "../../bench/harness/rounds.ts";
import type { Scratch } from "../../bench/harness/scratch.ts";

const measuring: Measuring = { rounds: 5, seconds: 1, onlyAims: false, onprogress: () => {} };
/** No contender of these tests has data. */
const noScratch = {} as Scratch;

function rowOf(contenders: readonly Contender[], more: Partial<Row> = {}): Row {
  return {
    name: "row",
    summary: "a row",
    unit: "IOPS",
    aims: [],
    open: async () => ({ contenders, async [Symbol.asyncDispose]() {} }),
    ...more,
  };
}

test("contenders take turns, each round begins with another one, and the first round is left out", async () => {
  const seen: string[] = [];
  const contender = (name: string): Contender => ({
    name,
    measure: async () => seen.push(name),
  });
  const result = await measureRow(rowOf(["a", "b", "c"].map(contender)), noScratch, measuring);
  assert.equal(seen.join(""), "abcbcacababcbcacab");
  assert.deepEqual(
    result.contenders.map(({ rounds }) => rounds),
    [
      [6, 8, 10, 15, 17],
      [4, 9, 11, 13, 18],
      [5, 7, 12, 14, 16],
    ],
  );
});

test("a ratio is by the best of the peers that the aim names, and taken within rounds", () => {
  const figures = [
    figuresOf("ours", [10, 40, 90]),
    figuresOf("slow", [1, 1, 1]),
    figuresOf("fast", [10, 20, 30]),
    figuresOf("another", [99, 99, 99]),
  ];
  const { peer, ratio, met } = verdict({ against: ["slow", "fast"], least: 2 }, figures, false);
  assert.deepEqual({ peer, ratio, met }, { peer: "fast", ratio: 2, met: true });
});

test("where less is better a ratio is turned around, and the best peer is the least", () => {
  const figures = [
    figuresOf("ours", [2, 2, 2]),
    figuresOf("slow", [9, 9, 9]),
    figuresOf("fast", [3, 3, 3]),
  ];
  const { peer, ratio } = verdict({ against: ["slow", "fast"], least: 2 }, figures, true);
  assert.deepEqual({ peer, ratio }, { peer: "fast", ratio: 1.5 });
});

test("half of an aim is not gross, less is, and a limit never is", () => {
  const gross = (ours: number) => {
    const figures = [figuresOf("ours", [ours]), figuresOf("theirs", [100])];
    return verdict({ against: ["theirs"], least: 1 }, figures, false).gross;
  };
  assert.equal(gross(50), false);
  assert.equal(gross(49), true);
  const { met, gross: limitGross } = verdict({ most: 1 }, [figuresOf("ours", [1000])], true);
  assert.deepEqual([met, limitGross], [false, false]);
});

test("a row is far behind where it is far behind every peer that it has aims for", () => {
  const behind = (ours: number) => {
    const figures = [figuresOf("ours", [ours]), figuresOf("slow", [100]), figuresOf("fast", [200])];
    const aims = ["slow", "fast"].map((peer) => ({ against: [peer], least: 1 }));
    return isGross({ verdicts: aims.map((aim) => verdict(aim, figures, false)) });
  };
  assert.equal(behind(60), false);
  assert.equal(behind(40), true);
  assert.equal(isGross({ verdicts: [] }), false);
});

test("what goes wrong in a row is told in its result", async () => {
  const failing: Contender = {
    name: "ours",
    measure: () => Promise.reject(new Error("wrong data")),
  };
  const { error, contenders } = await measureRow(rowOf([failing]), noScratch, measuring);
  assert.equal(error, "wrong data");
  assert.deepEqual(contenders, []);
});

test("the short form leaves out whom no aim is about", async () => {
  const contender = (name: string): Contender => ({ name, measure: async () => 1 });
  const row = rowOf(["ours", "peer", "other"].map(contender), {
    aims: [{ against: ["peer"], least: 1 }],
  });
  const { contenders } = await measureRow(row, noScratch, { ...measuring, onlyAims: true });
  assert.deepEqual(
    contenders.map(({ name }) => name),
    ["ours", "peer"],
  );
});
