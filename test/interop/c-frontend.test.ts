/** A frontend that is not ours, in C, in a process of its own: Xen's ring macros and Xen's xenstore library against our
 * backend, our grant tables, our event channels and our xenstore. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { shows } from "../../src/testing/index.ts";
import { buildRingLoad, RingLoad, RingLoadBackend } from "../support/ring-load.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";

/** By requests of 11 pages, all of the disk three times. */
const VERIFIED = 3 * Math.floor((32 * 2 ** 20) / (11 * 4096));
const SECONDS = 0.2;
let folder: TemporaryFolder;
let program: string;

before(async () => {
  folder = await temporaryFolder();
  program = folder.file("ring-load");
  await buildRingLoad(program);
});
after(() => folder[Symbol.asyncDispose]());

for (const order of [0, 2, 4]) {
  for (const persistent of [false, true]) {
    const kind = persistent ? "persistent" : "mapped for each request";
    test(
      `data is verified over ${1 << order} ring pages, grants ${kind}`,
      shows(["2.6", "2.9", "2.3", "4.1.1", "4.1.2"], async () => {
        await using vbd = await RingLoadBackend.open("memory 32M");
        {
          await using frontend = await RingLoad.start(program, vbd, { order, persistent });
          assert.equal(frontend.verifiedRequests, VERIFIED);
          for (const operation of ["read", "write"] as const) {
            for (const [pages, depth] of [
              [1, 1],
              [1, 32],
              [11, 32],
            ] as const) {
              const { iops } = await frontend.load(operation, pages, depth, SECONDS);
              assert.ok(iops > 0, `${operation} ${pages} ${depth}`);
            }
          }
        }
        assert.equal(vbd.backend.negotiated, undefined, "it has closed");
        assert.equal(vbd.dom0.grants.counters.mapped, 0);
      }),
    );
  }
}
