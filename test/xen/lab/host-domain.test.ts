/** The hypervisor port on a real Xen. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Lab } from "./lab.ts";

let lab: Lab;
before(async () => {
  lab = await Lab.boot();
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

const node = "node --conditions=vbdkit-source";

test("dom0 passes the suite of the hypervisor port", async () => {
  const suite = `${node} test/xen/lab/dom0/domain-suite.ts`;
  const { status, stdout } = await lab.run(suite, { timeout: 300 });
  assert.equal(status, 0, stdout);
  assert.match(stdout, /^\S+ pass [1-9]\d$/m);
});
