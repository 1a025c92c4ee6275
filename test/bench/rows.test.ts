import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const bench = join(import.meta.dirname, "../../bench/bench.ts");

interface Report {
  readonly groups: readonly {
    readonly results: readonly {
      readonly error?: string;
      readonly contenders: readonly { readonly name: string; readonly rounds: readonly number[] }[];
    }[];
  }[];
}

/** Measures a row alone, once. How fast anything was is nobody's business here, hence not the exit code either. */
async function measure(group: string, row: string): Promise<Report> {
  const folder = mkdtempSync(join(tmpdir(), "vbdkit-bench-test-"));
  try {
    const json = join(folder, "report.json");
    const words = [
      ...process.execArgv,
      bench,
      "--short",
      "--rounds",
      "1",
      "--json",
      json,
      group,
      row,
    ];
    const { promise, resolve } = Promise.withResolvers<string>();
    execFile(process.execPath, words, (_error, stdout, stderr) => resolve(stdout + stderr));
    const said = await promise;
    try {
      return JSON.parse(readFileSync(json, "utf8")) as Report;
    } catch (cause) {
      throw new Error(`it wrote no report: ${said}`, { cause });
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const [group, row] of [
  ["pipeline", "tmpfs-4k-mixed-32"],
  ["nbd", "4k-mixed-32"],
  ["backend", "4k-write-32"],
  ["costs", "filter"],
] as const) {
  test(`a row of ${group} is measured alone, and the data of all was right`, async () => {
    const { groups } = await measure(group, row);
    const [result] = groups[0]!.results;
    assert.equal(result!.error, undefined);
    assert.ok(result!.contenders.length > 1);
    for (const { name, rounds } of result!.contenders) {
      assert.equal(rounds.length, 1);
      assert.ok(rounds[0]! > 0, name);
    }
  });
}
