/** A frontend in C, in a process of its own: process-link/frontend.c is built (gcc, libxen-dev) and given a disk. */
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { BlockBackend, openStore, parseDisk } from "vbdkit";
import { createDomainNodes, createVbd, EmbeddedMachine } from "vbdkit/xen";

const run = promisify(execFile);
const GUEST = 7;
await using ends = new AsyncDisposableStack();
const folder = await mkdtemp(join(tmpdir(), "vbdkit-example-"));
ends.defer(() => rm(folder, { recursive: true }));
const program = join(folder, "frontend");
const source = join(import.meta.dirname, "process-link/frontend.c");
await run("gcc", ["-O2", "-Wall", "-Werror", "-o", program, source, "-lxenstore"]);

const machine = ends.use(await EmbeddedMachine.create());
const dom0 = await machine.createDomain(0, { shared: true });
await machine.domainTicket(GUEST, "process");
await createDomainNodes(dom0.store, 0, "Domain-0");
await createDomainNodes(dom0.store, GUEST, "a-frontend-in-c");
const paths = await createVbd(dom0.store, {
  frontendDomid: GUEST,
  backendDomid: 0,
  vdev: 51712,
  readOnly: false,
  params: "memory",
});
const store = await openStore(parseDisk(["memory", "16M"]));
ends.use(await BlockBackend.open(dom0, paths.backend, store));
const { stdout } = await run(program, [machine.directory, String(GUEST), paths.frontend]);
console.log(stdout.trim());
console.log(`${dom0.grants.counters.maps} pages mapped, ${dom0.grants.counters.mapped} left`);
