/** Every example runs, in a checkout, as its reader would run it. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { globSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { cleanEnvironment, finished } from "../support/vbdkit.ts";

const root = join(import.meta.dirname, "../..");

describe("examples", { concurrency: 2 }, () => {
  for (const example of globSync("examples/*.ts", { cwd: root }).sort()) {
    test(`${example} runs and prints something`, async () => {
      const words = ["run", "--silent", "example", "--", example];
      const child = spawn("npm", words, { cwd: root, env: cleanEnvironment() });
      const outcome = await finished(child);
      assert.equal(outcome.stderr, "");
      assert.equal(outcome.code, 0);
      assert.notEqual(outcome.stdout, "");
    });
  }
});
