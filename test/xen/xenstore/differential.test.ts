/**
 * Our xenstore daemon against Xen's own C daemon: the same random operations, everything compared.
 *
 * VBDKIT_DIFFERENTIAL_OPERATIONS (10000) and VBDKIT_DIFFERENTIAL_SEED (1) choose another run; from a million on, every
 * outcome that the C daemon gave must have come often.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Comparison, type Tally } from "./differential/comparison.ts";
import { differences } from "./differential/intended.ts";
import { Worlds } from "./differential/worlds.ts";

const OFTEN = 100;
const operations = Number(process.env.VBDKIT_DIFFERENTIAL_OPERATIONS ?? 10_000);
const seed = Number(process.env.VBDKIT_DIFFERENTIAL_SEED ?? 1);

/** A line for each operation: its outcomes and how often each came. */
function table({ outcomes }: Tally): string[] {
  const rows = new Map<string, string[]>();
  for (const [key, count] of [...outcomes].sort()) {
    const [name = "", outcome] = key.split(" ");
    rows.set(name, [...(rows.get(name) ?? []), `${outcome} ${count}`]);
  }
  return Array.from(rows, ([name, cells]) => `${name.padEnd(21)}${cells.join(", ")}`);
}

test("whatever clients of different rights do, they hear what Xen's own xenstored tells them", async (t) => {
  t.diagnostic(`VBDKIT_DIFFERENTIAL_SEED=${seed}`);
  await using worlds = await Worlds.start();
  const comparison = await Comparison.start(worlds, seed);
  await comparison.run(operations);
  const { tally } = comparison;
  for (const line of table(tally)) t.diagnostic(line);
  t.diagnostic(`${tally.operations} operations, ${tally.events} events`);
  for (const { name, why } of differences) {
    t.diagnostic(`${tally.differences.get(name) ?? 0} differences "${name}": ${why}`);
  }
  assert.ok(tally.events > operations / 100);
  if (operations < 1e6) return;
  assert.deepEqual(
    [...tally.outcomes].filter(([, count]) => count < OFTEN),
    [],
  );
});
