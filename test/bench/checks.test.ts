import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { allChecks, editedModules, withoutChecks } from "../../bench/costs/checks.ts";

const sources = join(import.meta.dirname, "../../src");

for (const check of allChecks) {
  test(`what is measured without ${check} is our source, and lacks it`, () => {
    for (const module of editedModules([check])) {
      const source = readFileSync(join(sources, module), "utf8");
      assert.notEqual(withoutChecks(module, source, [check]), source);
    }
  });
}

test("a check that is not in its source is an error", () => {
  const [module] = editedModules(["check-ranges"]);
  assert.throws(() => withoutChecks(module!, "", ["check-ranges"]), /does not have this once/);
});
