/**
 * Runs benchmarks: `npm run bench -- xenstore`, all of them without a word; `--json` prints figures for programs,
 * `--rounds N` runs more than five.
 */
import { parseArgs } from "node:util";
import { type Comparison, describe } from "./rounds.ts";
import { xenstore } from "./xenstore.ts";

/** Fewer rounds tell nothing of how far they lie apart. */
const LEAST_ROUNDS = 5;

const benches: Readonly<Record<string, (rounds: number) => AsyncIterable<Comparison>>> = {
  xenstore,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: "boolean" }, rounds: { type: "string", default: "5" } },
});
const rounds = Number(values.rounds);
const unknown = positionals.find((name) => benches[name] === undefined);
if (unknown !== undefined || !(Number.isInteger(rounds) && rounds >= LEAST_ROUNDS)) {
  console.error(`npm run bench -- [--json] [--rounds N] ${Object.keys(benches).join(" | ")}`);
  process.exit(2);
}
const comparisons: Comparison[] = [];
for (const name of positionals.length > 0 ? positionals : Object.keys(benches)) {
  for await (const comparison of benches[name]!(rounds)) {
    comparisons.push(comparison);
    if (!values.json) console.log(describe(comparison));
  }
}
if (values.json) console.log(JSON.stringify(comparisons, undefined, 2));
