/**
 * Runs the tests (but test/xen/lab/all/), or those whose path holds a given word: `npm test -- ring nbd`.
 *
 * First the tools they need, then the checks of the whole tree, then everything else, two files at a time. Zero,
 * skipped and todo tests are failures: nothing is left out quietly. A run of all tests also says whether
 * docs/compatibility.md is what the tests show (`--write-compatibility` writes it). The last line is
 * `N passed, N failed`.
 */
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { compatibility, readShown } from "../test/compatibility/document.ts";
import { labImages } from "../test/xen/lab/images.ts";
import { fileLimitMinutes } from "./limits.ts";
import { ensureTools } from "./tools.ts";

/** A test process that spins cannot end itself (scripts/watchdog.ts): the run ends it. */
const RUN_LIMIT_MINUTES = 40;
const SLOWEST_SHOWN = 8;
/** Tests of the lab that nobody should wait for; `npm run xen-lab -- all` runs them with the others. */
const ON_REQUEST = "test/xen/lab/all/";
/** Files are started in this order: what fails soonest first, what boots machines last. */
const order = ["test/package/check", "test/", "test/interop/", "test/package/", "test/xen/lab/"];

const root = join(import.meta.dirname, "..");
process.chdir(root);
process.env.PATH = [join(root, "node_modules/.bin"), process.env.PATH].join(delimiter);

const writeCompatibility = process.argv.includes("--write-compatibility");
const words = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const shownFolder = mkdtempSync(join(tmpdir(), "vbdkit-shown-"));
process.env.VBDKIT_SHOWN = shownFolder;
// Hundreds of processes load the same sources: those after the first find them compiled, in half of the time.
const compileCache = mkdtempSync(join(tmpdir(), "vbdkit-compiled-"));
process.env.NODE_COMPILE_CACHE = compileCache;
process.on("exit", () => {
  for (const folder of [shownFolder, compileCache])
    rmSync(folder, { recursive: true, force: true });
});
const files = globSync("test/**/*.test.ts")
  .filter((file) =>
    words.length === 0 ? !file.startsWith(ON_REQUEST) : words.some((word) => file.includes(word)),
  )
  .sort((left, right) => rank(left) - rank(right) || left.localeCompare(right));
function rank(file: string): number {
  const lengths = order.map((prefix) => (file.startsWith(prefix) ? prefix.length : -1));
  return lengths.indexOf(Math.max(...lengths));
}

try {
  await ensureTools(console.log);
  if (files.some((file) => file.startsWith("test/xen/lab/"))) await labImages(console.log);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  console.log("0 passed, 1 failed");
  process.exit(1);
}

// What npm test leaves out takes as long as it takes.
const onRequest = files.filter((file) => file.startsWith(ON_REQUEST)).map(fileLimitMinutes);
const runLimitMinutes = onRequest.reduce((sum, minutes) => sum + minutes, RUN_LIMIT_MINUTES);
const runLimit = AbortSignal.timeout(runLimitMinutes * 60_000);
let passed = 0;
let failed = 0;
let skipped = 0;
const durations: { name: string; file: string; seconds: number }[] = [];
// A run has one limit for all of its tests.
for (const [minutes, part] of Map.groupBy(files, fileLimitMinutes)) await runFiles(part, minutes);

async function runFiles(part: string[], limitMinutes: number): Promise<void> {
  const stream = run({
    files: part,
    concurrency: 2,
    timeout: limitMinutes * 60_000,
    signal: runLimit,
    execArgv: [
      ...process.execArgv,
      `--import=${new URL("watchdog.ts", import.meta.url)}`,
      `--import=${new URL("shown-rows.ts", import.meta.url)}`,
    ],
  });
  stream.on("test:pass", ({ name, file, details }) => {
    if (details.type === "suite" || file === undefined || file.endsWith(name)) return;
    durations.push({ name, file, seconds: details.duration_ms / 1000 });
  });
  stream.on("test:summary", (summary) => {
    if (summary.file !== undefined) return;
    const { counts } = summary;
    passed += counts.passed;
    skipped += counts.skipped + counts.todo;
    failed += counts.tests - counts.passed - counts.skipped - counts.todo;
  });
  for await (const chunk of stream.compose(new spec())) process.stdout.write(chunk);
}

console.log("Slowest:");
for (const test of durations.sort((a, b) => b.seconds - a.seconds).slice(0, SLOWEST_SHOWN)) {
  console.log(
    `  ${test.seconds.toFixed(1).padStart(6)} s  ${test.name}  (${test.file.slice(root.length + 1)})`,
  );
}
if (skipped > 0)
  console.log(`${skipped} tests were skipped or marked todo: that is a failure here.`);
/** One line for each thing that the compatibility table gets wrong; a run of some tests cannot tell. */
function compatibilityFaults(): string[] {
  if (words.length > 0 || failed > 0) return [];
  const { text, missing, unknown } = compatibility(readShown(shownFolder));
  const page = join(root, "docs/compatibility.md");
  if (writeCompatibility) writeFileSync(page, text);
  const same = readFileSync(page, "utf8") === text;
  return [
    ...missing.map((id) => `no test shows row ${id}`),
    ...unknown.map(
      (id) => `a test shows row ${id}, which test/compatibility/rows.ts does not have`,
    ),
    ...(same ? [] : ["docs/compatibility.md is not what the tests show: npm run compatibility"]),
  ];
}

const faults = compatibilityFaults();
for (const fault of faults) console.log(`Compatibility: ${fault}.`);
if (words.length === 0 && failed === 0 && faults.length === 0) passed++;
const bad = failed + skipped + faults.length + (passed === 0 ? 1 : 0);
console.log(`${passed} passed, ${bad} failed`);
process.exitCode = bad === 0 ? 0 : 1;
