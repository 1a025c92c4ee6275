/** The commands of docs/guide/xen-host.md, run in dom0 in their order, as a reader would. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Guest } from "../guest.ts";
import { Lab } from "../lab.ts";

const page = join(import.meta.dirname, "../../../../docs/guide/xen-host.md");
const serving = /serves vbd3 of domain 0/;

test("the commands of the guide for a Xen host run in dom0", async () => {
  const blocks = [...readFileSync(page, "utf8").matchAll(/^```sh dom0(.*)\n([\s\S]*?)^```$/gm)];
  assert.ok(blocks.length > 4);
  await using lab = await Lab.boot({ steadyTime: true });
  const web = await Guest.create(lab, { name: "web", root: "memory" });
  await web.waitFor(/@ready$/m);
  await using servers = new AsyncDisposableStack();
  for (const [, kind, commands] of blocks) {
    if (kind === "") {
      await lab.check(`set -e\n${commands}`);
      continue;
    }
    assert.equal(kind, " server");
    const server = servers.use(await lab.start(`exec ${commands}`));
    for (let tries = 0; !serving.test(server.output.stdout); tries++) {
      assert.ok(tries < 2400, `the daemon says only: ${server.output.stderr}`);
      await sleep(100);
    }
  }
  assert.equal(await lab.check("xenstore-ls /local/domain/0/backend/vbd3"), "");
});
