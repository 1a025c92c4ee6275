/** The published suites on a real Xen: peers that boot as the drivers of twenty years do, and break every rule there is. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Lab } from "../lab.ts";

const node = "exec node --conditions=vbdkit-source";

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
  // The scripted peers grant pages as they please.
  await lab.check(
    "modprobe -a xen-gntalloc xen-gntdev xen-evtchn; echo 16384 >/sys/module/xen_gntalloc/parameters/limit",
  );
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

test("dom0 passes the suites of backends and frontends", async () => {
  const { status, stdout } = await lab.run(`${node} test/xen/lab/dom0/block-suites.ts`, {
    timeout: 800,
  });
  assert.equal(status, 0, stdout);
  assert.match(stdout, /^\S+ pass [1-9]\d$/m);
});
