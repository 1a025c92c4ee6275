/** What is looked at before rights are given up: that nothing of others' is given away. */
import assert from "node:assert/strict";
import { linkSync, mkdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { userInfo } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { DaemonSettings } from "../../src/cli/daemon-settings.ts";
import { dropRights } from "../../src/cli/drop-rights.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

function settings(folder: string, user: string): DaemonSettings {
  return {
    ...{ folder, user, kinds: ["vbd3"], shared: true, engine: "auto", limits: {} },
    ...{ pidfile: undefined, verbose: false },
  };
}

test("a user that is not there serves nothing", async () => {
  await using folder = await temporaryFolder();
  assert.throws(() => dropRights(settings(folder.path, "no such user")), {
    name: "UsageError",
    message: /^--user no such user: there is no such user/,
  });
});

test("a link among the journals is not followed to the file of somebody else", async () => {
  await using folder = await temporaryFolder();
  const journals = join(folder.path, "journals");
  const secret = folder.file("secret");
  mkdirSync(journals, { mode: 0o700 });
  writeFileSync(secret, "");
  const before = statSync(secret);
  for (const link of [symlinkSync, linkSync]) {
    link(secret, join(journals, "1-51712-0"));
    assert.throws(() => dropRights(settings(folder.path, userInfo().username)), {
      name: "UsageError",
      message: /1-51712-0/,
    });
    rmSync(join(journals, "1-51712-0"));
  }
  assert.equal(statSync(secret).uid, before.uid);
});
