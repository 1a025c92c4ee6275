/** Runs the tests, or those whose path holds a given word: `npm test -- ring nbd`. Zero, skipped and todo tests are
 * failures; the last line is `N passed, N failed`. */
import { globSync } from "node:fs";
import { run } from "node:test";
import { spec } from "node:test/reporters";

const words = process.argv.slice(2);
const files = globSync("test/**/*.test.ts")
  .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
  .sort();
let passed = 0;
let failed = 0;
let skipped = 0;
const stream = run({ files, concurrency: 2, execArgv: process.execArgv });
stream.on("test:summary", (summary) => {
  if (summary.file !== undefined) return;
  passed = summary.counts.passed;
  skipped = summary.counts.skipped + summary.counts.todo;
  failed = summary.counts.tests - passed - skipped;
});
for await (const chunk of stream.compose(new spec())) process.stdout.write(chunk);
const bad = failed + skipped + (passed === 0 ? 1 : 0);
console.log(`${passed} passed, ${bad} failed`);
process.exitCode = bad === 0 ? 0 : 1;
