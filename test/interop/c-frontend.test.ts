/** A frontend that is not ours, in C, in a process of its own: Xen's ring macros and Xen's xenstore library against our
 * backend, our grant tables, our event channels and our xenstore. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { BlockBackend } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { openStore, parseDisk } from "../../src/store/index.ts";
import { shows } from "../../src/testing/index.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd } from "../../src/xen/toolstack.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";

const run = promisify(execFile);
const GUEST = 7;
let folder: TemporaryFolder;
let program: string;

before(async () => {
  folder = await temporaryFolder();
  program = folder.file("ring-load");
  const source = join(import.meta.dirname, "../support/ring-load.c");
  await run("gcc", ["-O2", "-Wall", "-Werror", "-o", program, source, "-lxenstore"]);
});
after(() => folder[Symbol.asyncDispose]());

for (const order of [0, 2, 4]) {
  for (const persistent of [false, true]) {
    const kind = persistent ? "persistent" : "mapped for each request";
    test(
      `data is verified over ${1 << order} ring pages, grants ${kind}`,
      shows(["2.6", "2.9", "2.3", "4.1.1", "4.1.2"], async () => {
        const reactor = new Reactor();
        await using machine = await EmbeddedMachine.create({ reactor });
        const dom0 = await machine.createDomain(0, { shared: true });
        const ticket = await machine.domainTicket(GUEST, "process");
        assert.ok(ticket.where === "process");
        await createDomainNodes(dom0.store, 0, "Domain-0");
        await createDomainNodes(dom0.store, GUEST, "c-frontend");
        const paths = await createVbd(dom0.store, {
          frontendDomid: GUEST,
          backendDomid: 0,
          vdev: 51712,
          readOnly: false,
          params: "memory",
        });
        const store = await openStore(parseDisk(["memory", "32M"]), { reactor });
        await using backend = await BlockBackend.open(dom0, paths.backend, store);
        const words = [ticket.directory, GUEST, paths.frontend, order, persistent ? 1 : 0, 0.2];
        const { stdout, stderr } = await run(program, words.map(String), { timeout: 60_000 });
        assert.equal(stderr, "");
        const report = JSON.parse(stdout) as Record<string, unknown>;
        assert.equal(report.verifiedRequests, 3 * 512);
        for (const load of ["read4KiBDepth1", "read4KiBDepth32", "write4KiBDepth32"]) {
          assert.ok((report[load] as { iops: number }).iops > 0, load);
        }
        assert.equal(backend.negotiated, undefined, "it has closed");
        assert.equal(dom0.grants.counters.mapped, 0);
      }),
    );
  }
}
