/** The planted bugs can still be planted: each has its one place in the sources. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { plant, plantedBugs } from "./planted.ts";

for (const bug of plantedBugs) {
  test(`there is one place for ${bug.name}`, () => {
    const text = readFileSync(new URL(`../../${bug.file}`, import.meta.url), "utf8");
    assert.notEqual(plant(bug, text), text);
  });
}
