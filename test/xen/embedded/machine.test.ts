import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { promisify } from "node:util";
import { type Domain, type OwnPages, PAGE_SIZE, XenError } from "../../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../../src/xen/embedded/index.ts";
import { Far } from "../../support/far-domain.ts";
import { exchange, soon, until } from "./exchange.ts";

const FAR = 7;

function grantOne(domain: Domain, peer: number): OwnPages {
  const pages = domain.grants.allocate(1)!;
  assert.ok(pages.grant(0, peer, false));
  return pages;
}

test("domains of one thread share pages, events and the xenstore", async () => {
  await using machine = await EmbeddedMachine.create();
  const back = await machine.createDomain(0);
  const front = await machine.createDomain(5);
  const pages = grantOne(front, 0);
  const ring = back.grants.mapContiguous(5, [pages.references[0]!], false);
  assert.ok(typeof ring === "object");
  ring.bytes[0] = 3;
  assert.equal(pages.region.bytes[pages.start], 3);
  const offered = front.events.allocateUnbound(0);
  const { promise, resolve } = Promise.withResolvers<void>();
  offered.onevent = resolve;
  back.events.bindInterdomain(5, offered.port).notify();
  await promise;
  await back.store.write("/local/domain/5/name", "guest");
  assert.equal(await back.store.read("/local/domain/5/name"), "guest");
});

for (const where of ["worker", "process"] as const) {
  test(`a domain in a ${where} exchanges pages, events and nodes with this thread`, async () => {
    await exchange(where);
  });

  test(`a ${where} that is killed half way leaves nothing mapped or bound`, async () => {
    await using machine = await EmbeddedMachine.create();
    const here = await machine.createDomain(0, { shared: where === "process" });
    const far = await Far.start(await machine.domainTicket(FAR, where));
    await using _ = far;
    const pages = grantOne(here, FAR);
    const channel = here.events.allocateUnbound(FAR);
    await far.call("map", 0, pages.references[0]!, 0);
    await far.call("echo", 0, channel.port);
    const theirs = here.grants.mapContiguous(FAR, [(await far.call("share", 0)) as number], false);
    assert.ok(typeof theirs === "object");
    await far.kill();
    channel.notify();
    await soon();
    assert.equal(pages.endAccess(0), false);
    await machine.destroyDomain(FAR);
    assert.equal(pages.endAccess(0), true);
    channel.notify();
    theirs.bytes.fill(1);
    theirs[Symbol.dispose]();
    assert.equal(here.grants.counters.mapped, 0);
    // The number is free, and the port may be bound again by who has it next.
    await using next = await Far.start(await machine.domainTicket(FAR, where));
    await next.call("bind", 0, channel.port);
    await next.call("notify", 0);
    await until(() => here.events.counters.delivered === 0);
    await next.call("close");
    await next.ended();
  });

  test(`a ${where} outlives a domain whose pages it maps`, async () => {
    await using machine = await EmbeddedMachine.create();
    const here = await machine.createDomain(1, { shared: where === "process" });
    await using far = await Far.start(await machine.domainTicket(FAR, where));
    const pages = grantOne(here, FAR);
    pages.region.bytes[pages.start] = 77;
    const channel = here.events.allocateUnbound(FAR);
    await far.call("map", 1, pages.references[0]!, 0);
    await far.call("bind", 1, channel.port);
    await machine.destroyDomain(1);
    assert.equal(await far.call("peek", 0, 0), 77);
    await far.call("notify", 0);
    const refused = (await far.call("map", 1, 8, 0)) as number[];
    assert.equal(refused[0], -2);
    await far.call("close");
    await far.ended();
  });
}

test("a worker works the same without foreign calls", async () => {
  const url = JSON.stringify(new URL("./exchange.ts", import.meta.url).href);
  const program = `import(${url}).then((all) => all.exchange("worker")).then(() => console.log("well"))`;
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [...process.execArgv.filter((each) => !each.startsWith("--test")), "--eval", program],
    { env: { ...process.env, VBDKIT_NO_FFI: "1" }, timeout: 20_000 },
  );
  assert.equal(stdout, "well\n");
});

test("a worker and a process reach each other, and a domain that came later", async () => {
  await using machine = await EmbeddedMachine.create();
  await using worker = await Far.start(await machine.domainTicket(8, "worker", { shared: true }));
  await using child = await Far.start(await machine.domainTicket(9, "process"));
  const reference = (await worker.call("share", 9)) as number;
  const port = (await worker.call("offer", 9)) as number;
  assert.equal(((await child.call("map", 8, reference, 0)) as number[])[0], 0);
  await child.call("poke", 0, 5, 55);
  assert.equal(await worker.call("peek", 0, 5), 55);
  await child.call("bind", 8, port);
  await child.call("notify", 0);
  await until(async () => (await worker.call("events")) === 1);
  await using late = await Far.start(await machine.domainTicket(10, "worker"));
  const other = (await late.call("share", 8)) as number;
  assert.equal(((await worker.call("map", 10, other, 0)) as number[])[0], 0);
  // Memory of this process alone cannot be reached from another.
  assert.equal(((await child.call("map", 10, other, 0)) as number[])[0], -2);
  for (const far of [worker, child, late]) {
    await far.call("close");
    await far.ended();
  }
});

test("pages that lie apart are mapped side by side where the memory is shared", async () => {
  await using machine = await EmbeddedMachine.create();
  const front = await machine.createDomain(1, { shared: true });
  const back = await machine.createDomain(2);
  const pages = front.grants.allocate(4)!;
  const { bytes } = pages.region;
  for (let i = 0; i < 4; i++) {
    pages.grant(i, 2, false);
    bytes[pages.start + i * PAGE_SIZE] = i + 1;
  }
  const ring = back.grants.mapContiguous(1, [...pages.references].reverse(), false);
  assert.ok(typeof ring === "object");
  const firsts = [0, 1, 2, 3].map((i) => ring.bytes[i * PAGE_SIZE]);
  assert.deepEqual(firsts, [4, 3, 2, 1]);
  ring.bytes[PAGE_SIZE + 1] = 33;
  assert.equal(bytes[pages.start + 2 * PAGE_SIZE + 1], 33);
  assert.equal(pages.endAccess(0), false);
  ring[Symbol.dispose]();
  ring[Symbol.dispose]();
  assert.equal(back.grants.counters.mapped, 0);
  for (let i = 0; i < 4; i++) assert.ok(pages.endAccess(i));
});

test("the memory of a domain that has ended goes, though others had mapped its pages before", async () => {
  // Of domains of other tests, some may still be on its way.
  const earlier = memories();
  const held = () => memories().filter((inode) => !earlier.includes(inode)).length;
  await using machine = await EmbeddedMachine.create();
  const back = await machine.createDomain(2);
  for (const unmapsFirst of [true, false]) {
    const front = await machine.createDomain(1, { shared: true });
    const pages = grantOne(front, 2);
    const ring = back.grants.mapContiguous(1, [pages.references[0]!], false);
    assert.ok(typeof ring === "object");
    pages[Symbol.dispose]();
    if (unmapsFirst) ring[Symbol.dispose]();
    assert.equal(held(), 1);
    await machine.destroyDomain(1);
    ring[Symbol.dispose]();
    assert.equal(held(), 0);
  }
});

/** The inodes of the memory of all domains 1 that this process has open. */
function memories(): number[] {
  return readdirSync("/proc/self/fd").flatMap((descriptor) => {
    const path = `/proc/self/fd/${descriptor}`;
    try {
      return readlinkSync(path).includes("memfd:domain-1") ? [statSync(path).ino] : [];
    } catch {
      // That of the listing itself.
      return [];
    }
  });
}

test("a number is taken until its domain has ended, however it ended", async () => {
  await using machine = await EmbeddedMachine.create();
  const first = await machine.createDomain(3);
  const taken = { name: "XenError", code: "EEXIST" };
  await assert.rejects(machine.createDomain(3), taken);
  await assert.rejects(machine.domainTicket(3, "worker"), taken);
  await first[Symbol.asyncDispose]();
  const second = await machine.createDomain(3);
  await Promise.all([machine.destroyDomain(3), machine.destroyDomain(3)]);
  await second[Symbol.asyncDispose]();
  await machine.domainTicket(3, "worker");
  await machine.destroyDomain(3);
  await machine.destroyDomain(99);
  await assert.rejects(machine.createDomain(0x7ff0), RangeError);
  await assert.rejects(machine.createDomain(4, { memoryPages: 8 }), RangeError);
  await machine.createDomain(4);
});

test("the folder is its owner's alone and is removed with what is in it", async () => {
  const parent = mkdtempSync(join(tmpdir(), "vbdkit-machine-"));
  try {
    const directory = join(parent, "machine");
    const machine = await EmbeddedMachine.create({ directory });
    assert.equal(existsSync(directory), false);
    await machine.createDomain(2, { shared: true });
    assert.equal(machine.directory, directory);
    assert.equal(statSync(directory).mode & 0o777, 0o700);
    assert.deepEqual(readdirSync(join(directory, "domain-2")), [
      "events",
      "memory",
      "xenstored.sock",
    ]);
    assert.equal(statSync(join(directory, "domain-2", "events")).mode & 0o777, 0o600);
    await machine[Symbol.asyncDispose]();
    assert.equal(existsSync(directory), false);
  } finally {
    rmSync(parent, { recursive: true });
  }
});

test("a ticket for a domain that has ended is refused", async () => {
  await using machine = await EmbeddedMachine.create();
  const ticket = await machine.domainTicket(6, "process");
  await machine.destroyDomain(6);
  const { joinMachine } = await import("../../../src/xen/embedded/index.ts");
  const { Reactor } = await import("../../../src/io/reactor.ts");
  await assert.rejects(
    joinMachine(ticket, new Reactor()),
    (error) => error instanceof XenError && error.code === "ENOENT",
  );
});
