/**
 * Our xenstore daemon against Xen's own C daemon: the same random operations, everything compared.
 *
 * VBDKIT_DIFFERENTIAL_OPERATIONS (10000) makes a longer run, and VBDKIT_DIFFERENTIAL_SEED, which is printed, repeats one;
 * from a million on, every outcome that the C daemon gave must have come often.
 */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { test } from "node:test";
import { Comparison } from "./differential/comparison.ts";
import { differences } from "./differential/intended.ts";
import { Worlds } from "./differential/worlds.ts";

const OFTEN = 100;
const operations = Number(process.env.VBDKIT_DIFFERENTIAL_OPERATIONS ?? 10_000);
const { VBDKIT_DIFFERENTIAL_SEED: chosen } = process.env;
const seed = chosen === undefined ? randomInt(2 ** 32) : Number(chosen);

test("whatever clients of different rights do, they hear what Xen's own xenstored tells them", async (t) => {
  t.diagnostic(`VBDKIT_DIFFERENTIAL_SEED=${seed}`);
  await using worlds = await Worlds.start();
  const comparison = await Comparison.start(worlds, seed);
  await comparison.run(operations);
  const { tally } = comparison;
  for (const { name, why } of differences) t.diagnostic(`difference "${name}": ${why}`);
  for (const line of tally.table()) t.diagnostic(line);
  t.diagnostic(`${tally.operations} operations, ${tally.events} events`);
  assert.ok(tally.events > operations / 100);
  if (operations < 1e6) return;
  assert.deepEqual(tally.seldom(OFTEN), []);
});
