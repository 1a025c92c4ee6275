/**
 * `npm run bench`: ours beside its peers, side by side in one run, by ratio. Without words all groups; `-- GROUP` one of
 * them, `-- GROUP ROW` one row. docs/performance.md tells what the rows are.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ensureTools } from "../scripts/tools.ts";
import { groups } from "./groups.ts";
import { chart } from "./harness/chart.ts";
import { type BenchOptions, parseBenchOptions, usage } from "./harness/command-line.ts";
import type { Group, Row } from "./harness/group.ts";
import { describeMachine, machineFacts } from "./harness/machine.ts";
import { writeTables } from "./harness/page.ts";
import { Progress } from "./harness/progress.ts";
import { isGross, measureRow, type RowResult } from "./harness/rounds.ts";
import { Scratch } from "./harness/scratch.ts";
import { Table } from "./harness/table.ts";

/** Of rows that were wanted. */
interface GroupResult {
  readonly group: Group;
  readonly results: RowResult[];
}

let options: BenchOptions;
try {
  options = parseBenchOptions(process.argv.slice(2), groups);
} catch (error) {
  console.error(`${(error as Error).message}\n\n${usage(groups)}`);
  process.exit(2);
}
if (options.list) {
  for (const { group, rows } of options.wanted) {
    console.log(`${group.name}: ${group.summary}`);
    for (const { name, summary } of rows) console.log(`  ${name.padEnd(20)} ${summary}`);
  }
  process.exit(0);
}
await ensureTools(console.error);
if (options.profile !== undefined) process.env.VBDKIT_BENCH_PROFILE = options.profile;
// Children, sockets and data go with the process, not only at the end of a run.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));

const measured: GroupResult[] = [];
{
  using scratch = new Scratch();
  using progress = new Progress(process.stderr);
  for (const { group, rows } of options.wanted) {
    const table = new Table(group, rows);
    console.log(table.head);
    const results: RowResult[] = [];
    measured.push({ group, results });
    for (const row of rows) {
      const result = await measure(row, group, scratch, progress);
      progress.clear();
      console.log(table.line(result));
      results.push(result);
    }
    await group.close?.();
    console.log();
  }
}
write(measured);
const bad = measured
  .flatMap(({ results }) => results)
  .filter((result) => result.error !== undefined || isGross(result));
if (bad.length > 0) {
  console.log(`Failed, or below half of their aims: ${bad.map(({ name }) => name).join(", ")}.`);
}
process.exitCode = bad.length === 0 ? 0 : 1;

/** A row that is far below its aim is measured once more before anybody believes it. */
async function measure(
  row: Row,
  group: Group,
  scratch: Scratch,
  progress: Progress,
): Promise<RowResult> {
  const once = () =>
    measureRow(row, scratch, {
      ...options.measuring,
      onprogress: (done, all, contender) =>
        progress.show(`${group.name} ${row.name}: ${done}/${all} ${contender}`),
    });
  const result = await once();
  return isGross(result) ? await once() : result;
}

function write(all: readonly GroupResult[]): void {
  const machine = machineFacts();
  const { json, charts, page } = options;
  if (json !== undefined) {
    const plain = all.map(({ group: { name, summary }, results }) => ({ name, summary, results }));
    const text = { date: new Date().toISOString(), machine, ...options.measuring, groups: plain };
    writeFileSync(json, `${JSON.stringify(text, undefined, 2)}\n`);
  }
  if (charts !== undefined) {
    mkdirSync(charts, { recursive: true });
    for (const { group, results } of all) {
      const picture = chart(group, results, describeMachine(machine));
      writeFileSync(join(charts, `${group.name}.svg`), picture);
    }
  }
  if (page !== undefined) writeTables(page, all, describeMachine(machine));
}
