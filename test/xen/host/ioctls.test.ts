import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import * as ioctls from "../../../src/xen/host/ioctls.ts";
import { CProgram } from "../../wire/c-program.ts";

/** Constants of grant_table.h, which Linux's headers for programs leave out. */
const FROM_XEN = new Set(["GNTCOPY_source_gref", "GNTCOPY_dest_gref"]);

test("every request and every field is where Linux's headers have it", () => {
  using program = new CProgram(join(import.meta.dirname, "ioctls.c"), "x86_64-abi");
  const theirs = new Map(
    program.run([]).map((line) => {
      const [name, value] = line.split(" ") as [string, string];
      return [name, Number(value)];
    }),
  );
  const ours = new Map<string, number>();
  for (const [name, value] of Object.entries(ioctls)) {
    if (typeof value === "number") ours.set(name, value);
    else for (const [field, byte] of Object.entries(value)) ours.set(`${name}.${field}`, byte);
  }
  for (const name of FROM_XEN) ours.delete(name);
  assert.deepEqual(ours, theirs);
});
