/** The control socket itself, with answers that no command of ours gives. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { askServer, openControl } from "../../src/cli/control.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

test("an answer that JSON cannot write is an error to whoever asked, and others are answered", async () => {
  await using folder = await temporaryFolder();
  await using _control = await openControl(folder.path, {
    big: async () => 1n,
    fine: async () => [1],
  });
  await assert.rejects(askServer(folder.path, "big"), /BigInt/);
  assert.deepEqual(await askServer(folder.path, "fine"), [1]);
});
