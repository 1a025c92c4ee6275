/** Rows are shown by tests that passed and had something to look at, and by no others. */
import assert from "node:assert/strict";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { test } from "node:test";
import { type ShownRows, shows } from "../../src/testing/index.ts";

test("rows are shown once the body has passed, not when it fails or finds nothing", async (context) => {
  const seen: ShownRows[] = [];
  const listen = (message: unknown) => void seen.push(message as ShownRows);
  subscribe("vbdkit:shows", listen);
  try {
    await shows(["1.1"], async () => {})(context);
    await shows(["1.2"], async () => false)(context);
    const failing = shows(["1.3"], () => {
      throw new Error("no");
    });
    await assert.rejects(failing(context), /no/);
  } finally {
    unsubscribe("vbdkit:shows", listen);
  }
  assert.deepEqual(
    seen.map(({ rows, test }) => [rows, test]),
    [[["1.1"], context.fullName]],
  );
});
