import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { backendParameters, defaultBackendLimits, describeRange } from "../../src/block/index.ts";

test("docs/backend.md has every parameter with its default and range", async () => {
  const page = await readFile(join(import.meta.dirname, "../../docs/backend.md"), "utf8");
  for (const parameter of backendParameters) {
    const value = defaultBackendLimits[parameter.field];
    const shown = typeof value === "boolean" ? Number(value) : value;
    const range = describeRange(parameter).replace("a number from ", "");
    const row = `| \`${parameter.name}\` | ${shown} | ${range} | ${parameter.help.replace(/\.$/, "")}`;
    assert.ok(page.includes(row), row);
  }
});
