import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { promisify } from "node:util";
import { createSharedMemory } from "../../../src/io/shared-memory.ts";
import { type ContiguousMapping, GrantMapBatch, PAGE_SIZE } from "../../../src/xen/domain.ts";
import { DomainMemory } from "../../../src/xen/embedded/domain-memory.ts";
import { EmbeddedMachine } from "../../../src/xen/embedded/index.ts";
import { shapeOf } from "../../../src/xen/embedded/layout.ts";
import { MachineFolder, openNeighbour } from "../../../src/xen/embedded/machine-folder.ts";
import { until } from "./exchange.ts";

const scratch = mkdtempSync(join(tmpdir(), "vbdkit-link-"));
after(() => rmSync(scratch, { recursive: true }));

const support = (name: string): string =>
  new URL(`../../support/${name}`, import.meta.url).pathname;

test("a program in C is a domain: it maps, copies, is refused, and exchanges events", async () => {
  const program = join(scratch, "shim-check");
  const sources = [support("shim-check.c"), support("qemu-xen-block-shim.c")];
  execFileSync("gcc", ["-O2", "-Wall", "-o", program, ...sources, "-lpthread"]);
  await using machine = await EmbeddedMachine.create();
  const front = await machine.createDomain(1, { shared: true });
  await machine.domainTicket(2, "process");
  const pages = front.grants.allocate(3)!;
  for (let i = 0; i < 3; i++) {
    pages.grant(i, i === 2 ? 9 : 2, i === 1);
    pages.region.bytes[pages.start + i * PAGE_SIZE] = i + 1;
  }
  const channel = front.events.allocateUnbound(2);
  let answers = 0;
  channel.onevent = () => {
    answers++;
    // While the program waits for us, the pages are marked as in use.
    if (answers < 3) assert.equal(pages.endAccess(0), false);
    if (answers < 3) channel.notify();
  };
  const { stdout } = await promisify(execFile)(
    program,
    [1, channel.port, ...pages.references].map(String),
    { env: { VBDKIT_DIRECTORY: machine.directory, VBDKIT_DOMID: "2" }, timeout: 20_000 },
  );
  assert.equal(stdout, "ended well\n");
  await until(() => answers === 3);
  const page = Buffer.from(pages.region.bytes.buffer, pages.start, PAGE_SIZE);
  assert.equal(page[1], 2);
  assert.equal(page.toString("latin1", 4080, 4086), "copied");
  assert.equal(page.toString("latin1", 4088, 4094), "mapped");
  for (let i = 0; i < 3; i++) assert.equal(pages.endAccess(i), true);
  // It closed its port, so that ours can be bound again.
  assert.equal(front.events.counters.delivered, 3);
});

test("a page of a memfd that is mapped read-only cannot be written to", async () => {
  await using machine = await EmbeddedMachine.create();
  const here = await machine.createDomain(0);
  const peer = await machine.createDomain(1, { shared: true });
  const pages = peer.grants.allocate(4)!;
  for (let i = 0; i < 4; i++) pages.grant(i, 0, i < 2);
  const [first, second, third, fourth] = pages.references as unknown as number[];
  pages.region.bytes[pages.start] = 77;
  const batch = new GrantMapBatch(1);
  batch.count = 1;
  batch.references[0] = first!;
  batch.readOnly[0] = 1;
  here.grants.map(1, batch);
  const start = batch.starts[0]!;
  const page = batch.regions[0]!.bytes.subarray(start, start + PAGE_SIZE);
  using inOrder = here.grants.mapContiguous(1, [first!, second!], true) as ContiguousMapping;
  using apart = here.grants.mapContiguous(1, [third!, first!], true) as ContiguousMapping;
  using writable = here.grants.mapContiguous(1, [fourth!, third!], false) as ContiguousMapping;
  assert.deepEqual([page[0], inOrder.bytes[0], apart.bytes[PAGE_SIZE]], [77, 77, 77]);
  const zeroes = openSync("/dev/zero", "r");
  after(() => closeSync(zeroes));
  // The kernel answers; a store would end the process.
  for (const bytes of [page, inOrder.bytes, apart.bytes]) {
    assert.throws(() => readSync(zeroes, bytes), { code: "EFAULT" });
  }
  assert.equal(readSync(zeroes, writable.bytes), 2 * PAGE_SIZE);
});

test("the shim can be preloaded: it has what QEMU's xen-block asks of the libraries", () => {
  const library = join(scratch, "shim.so");
  const flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library];
  execFileSync("gcc", [...flags, support("qemu-xen-block-shim.c"), "-lpthread"]);
  const symbols = execFileSync("nm", ["-D", "--defined-only", library], { encoding: "utf8" });
  for (const name of [
    "xengnttab_open",
    "xengnttab_map_domain_grant_refs",
    "xengnttab_unmap",
    "xengnttab_grant_copy",
    "xenevtchn_open",
    "xenevtchn_fd",
    "xenevtchn_bind_interdomain",
    "xenevtchn_pending",
    "xenevtchn_unmask",
    "xenevtchn_notify",
    "xc_interface_open",
    "xenforeignmemory_open",
    "xendevicemodel_open",
  ]) {
    assert.match(symbols, new RegExp(` T ${name}$`, "m"));
  }
});

/** A folder with a domain 4 that is as it should be; what the tests break. */
async function folder(): Promise<{ directory: string; memory: string; events: string }> {
  const directory = mkdtempSync(join(scratch, "folder-"));
  const { region, descriptor } = createSharedMemory("domain-4", 64 * PAGE_SIZE);
  after(() => region[Symbol.dispose]());
  DomainMemory.format(region, shapeOf(4, 64, { grantEntries: 512 }));
  const paths = await new MachineFolder(directory).addDomain(4, descriptor);
  return { directory, ...paths };
}

test("a peer's memory that could shrink, is too small, or is something else is refused", async () => {
  const { directory, memory } = await folder();
  const opened = openNeighbour(directory, 4);
  assert.ok(opened !== undefined);
  assert.equal(openNeighbour(directory, 5), undefined);
  for (const domid of [-1, 0.5, 2 ** 40, Number.NaN, 0x7ff0]) {
    assert.equal(openNeighbour(directory, domid), undefined);
  }
  const plain = join(scratch, "plain");
  writeFileSync(plain, opened.memory.bytes);
  const small = createSharedMemory("small", PAGE_SIZE);
  const header = createSharedMemory("header", 2 * PAGE_SIZE);
  // The header promises more than there is.
  header.region.bytes.set(opened.memory.bytes.subarray(0, PAGE_SIZE));
  for (const target of [
    plain,
    "/dev/zero",
    "/nowhere",
    scratch,
    `/proc/${process.pid}/fd/${small.descriptor}`,
    `/proc/${process.pid}/fd/${header.descriptor}`,
  ]) {
    rmSync(memory);
    symlinkSync(target, memory);
    assert.equal(openNeighbour(directory, 4), undefined, target);
  }
  opened[Symbol.dispose]();
  small.region[Symbol.dispose]();
  header.region[Symbol.dispose]();
});

test("a domain's memory cannot be truncated by anyone who opens it", async () => {
  const { memory } = await folder();
  const descriptor = openSync(memory, "r+");
  assert.throws(() => ftruncateSync(descriptor, PAGE_SIZE), { code: "EPERM" });
  assert.throws(() => ftruncateSync(descriptor, 2 ** 30), { code: "EPERM" });
});

test("a bell that is no FIFO is refused, so that nothing is ever written to a file", async () => {
  const { directory, events } = await folder();
  rmSync(events);
  writeFileSync(events, "");
  assert.equal(openNeighbour(directory, 4), undefined);
  rmSync(events);
  symlinkSync("/dev/null", events);
  assert.equal(openNeighbour(directory, 4), undefined);
});

test("a bell that nobody answers fills up and harms nobody", async () => {
  const { directory } = await folder();
  const neighbour = openNeighbour(directory, 4)!;
  for (let i = 0; i < 20_000; i++) {
    Atomics.store(neighbour.memory.upcall, 0, 0);
    neighbour.wake();
  }
  neighbour[Symbol.dispose]();
});

test("a peer that fills every shared word with garbage disturbs neither us nor third domains", async () => {
  await using machine = await EmbeddedMachine.create();
  const here = await machine.createDomain(0, { shared: true });
  const third = await machine.createDomain(1, { shared: true });
  await machine.domainTicket(2, "process", { memoryPages: 64, grantEntries: 64 });
  const peer = openNeighbour(machine.directory, 2)!;
  const channel = here.events.allocateUnbound(2);
  const bound = third.events.bindInterdomain(0, here.events.allocateUnbound(1).port);
  let seed = 12345;
  const random = (): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed;
  };
  const batch = new GrantMapBatch(16);
  const { region } = peer.memory;
  const words = new Uint32Array(region.bytes.buffer, region.bytes.byteOffset, 64 * 1024);
  for (let round = 0; round < 50; round++) {
    for (let i = 0; i < 9 * 1024; i++) words[i] = random();
    // Now and then the header is believable again.
    if (round % 2 === 0) DomainMemory.format(region, shapeOf(2, 64, { grantEntries: 64 }));
    batch.count = 16;
    batch.references.forEach((_, i) => {
      batch.references[i] = i;
    });
    here.grants.map(2, batch);
    for (let i = 0; i < 16; i++) if (batch.statuses[i] === 0) here.grants.unmap(batch.handles[i]!);
    channel.notify();
    bound.notify();
    peer.wake();
    here.reactor.settle();
  }
  assert.equal(here.grants.counters.mapped, 0);
  peer[Symbol.dispose]();
  await machine.destroyDomain(2);
});
