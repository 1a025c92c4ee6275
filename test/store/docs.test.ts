/** A page for each driver and filter, and a place in it for each of its parameters. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { drivers, filters } from "../../src/store/registry.ts";

for (const [kind, known] of Object.entries({ drivers, filters })) {
  for (const { name, parameters } of known.values()) {
    test(`docs/${kind}/${name}.md says what each parameter of ${name} means`, () => {
      const page = readFileSync(new URL(`../../docs/${kind}/${name}.md`, import.meta.url), "utf8");
      assert.ok(page.startsWith(`# ${name}: `), "the page begins with the name");
      for (const parameter of Object.keys(parameters)) {
        assert.ok(page.includes(`\`${parameter}\``), `nothing about ${parameter}=`);
      }
    });
  }
}
