/** The xenstore by shared memory: what a guest does, and what it must not be able to do to others. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../../src/util/random.ts";
import {
  encodeXenStoreMessage,
  XS_DIRECTORY,
  XS_READ,
  XS_WATCH,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import {
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
} from "../../../src/wire/xenstore-ring.ts";
import type { XenError } from "../../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../../src/xen/embedded/index.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { connectRing } from "../../../src/xen/xenstore/ring-guest.ts";
import { Far } from "../../support/far-domain.ts";
import { RawClient } from "./raw-client.ts";
import { daemonWithRings, Ring, settled } from "./ring-world.ts";

function message(type: number, text: string): Uint8Array {
  const payload = Buffer.from(text, "latin1");
  return encodeXenStoreMessage({ type, requestId: 1, transactionId: 0, payload });
}

/** Rings of domains 1 and 2, served, and a list of the clients that were lost. */
async function world() {
  const rings = new Map([1, 2].map((domid) => [domid, new Ring()]));
  const lost: string[] = [];
  const daemon = daemonWithRings(rings, {
    onClientLost: (domid, reason) => lost.push(`${domid} ${(reason as XenError).code}`),
  });
  const zero = new XenStoreClient(daemon.connect(0));
  for (const domid of [1, 2]) {
    const home = `/local/domain/${domid}`;
    await zero.mkdir(home);
    await zero.setPermissions(home, [{ domid, access: "none" }]);
    daemon.introduce(domid, 1);
  }
  return { daemon, zero, lost, bad: rings.get(1)!, good: rings.get(2)! };
}

test("a domain of a machine reads, writes, watches and has transactions by its ring", async () => {
  await using machine = await EmbeddedMachine.create();
  const zero = await machine.createDomain(0);
  const heard: string[] = [];
  await using _ = await zero.store.watch("@introduceDomain", (path) => heard.push(path));
  const guest = await machine.createDomain(1, { xenstore: "ring" });
  await zero.store.mkdir("/local/domain/1");
  await zero.store.setPermissions("/local/domain/1", [{ domid: 1, access: "none" }]);
  await guest.store.write("name", "guest");
  assert.equal(await zero.store.read("/local/domain/1/name"), "guest");
  const long = "v".repeat(1900);
  await guest.store.transaction(async (operations) => {
    await operations.write("long", long);
    await operations.write("name", "renamed");
  });
  assert.equal(await guest.store.read("long"), long);
  const { promise, resolve } = Promise.withResolvers<void>();
  const watched: string[] = [];
  await using watch = await guest.store.watch("device", (path) => {
    watched.push(path);
    if (path === "device/vbd/1") resolve();
  });
  await zero.store.write("/local/domain/1/device/vbd/1", "x");
  await promise;
  assert.deepEqual(watched, ["device", "device/vbd/1"]);
  assert.deepEqual(heard, ["@introduceDomain", "@introduceDomain"], "one for the watch, one for 1");
  await machine.destroyDomain(1);
  assert.equal(await zero.store.read("/local/domain/1/name"), undefined);
  const next = await machine.createDomain(1, { xenstore: "ring" });
  assert.equal(await next.store.read("/local/domain/1/name").catch((e) => e.code), "EACCES");
  assert.ok(watch);
});

test("the page of the ring and its port are the domain's builder's: nobody is given them again", async () => {
  await using machine = await EmbeddedMachine.create();
  const guest = await machine.createDomain(1, { xenstore: "ring", memoryPages: 80 });
  const all = [];
  for (
    let pages = guest.grants.allocate(1);
    pages !== undefined;
    pages = guest.grants.allocate(1)
  ) {
    pages.region.bytes.fill(0xff, pages.start, pages.start + 4096);
    all.push(pages);
  }
  assert.ok(all.length > 5);
  const channels = [1, 2, 3].map(() => guest.events.allocateUnbound(0));
  assert.ok(!channels.some(({ port }) => port === 1));
  await guest.store.read("nothing").catch((error: XenError) => assert.equal(error.code, "EACCES"));
});

test("messages of every length pass a ring of 1 KiB, many in flight", async () => {
  const { daemon, good } = await world();
  await using _ = daemon;
  const client = new RawClient(connectRing({ page: good.page, channel: good.guest }));
  const value = (length: number) => String.fromCharCode(97 + (length % 26)).repeat(length);
  const lengths = [0, 1, 5, 900, 1007, 1008, 1009, 1500, 1900, 3, 0, 17, 1200];
  const written = lengths.map((length, i) => client.raw(XS_WRITE, `n${i}\0${value(length)}`));
  const read = lengths.map((_, i) => client.ask(XS_READ, [`n${i}`]));
  assert.ok((await Promise.all(written)).every((answer) => answer === "OK"));
  assert.deepEqual(await Promise.all(read), lengths.map(value));
});

test("an index that no honest guest writes ends that connection, says so in the page, and troubles nobody", async () => {
  // From where the daemon has got to.
  for (const [name, distance] of [
    ["req_prod", 1025],
    ["req_prod", -1],
    ["req_prod", 0x8000_0000],
    ["rsp_cons", 1],
    ["rsp_cons", -1025],
    ["rsp_cons", 0x8000_0000],
  ] as const) {
    const { daemon, zero, lost, bad, good } = await world();
    await using _ = daemon;
    const neighbour = new RawClient(connectRing({ page: good.page, channel: good.guest }));
    assert.equal(await neighbour.ask(XS_WATCH, ["a", "t"]), "OK");
    bad.put(message(XS_READ, "/\0"));
    await settled();
    const base = bad.words.get(name === "req_prod" ? "req_cons" : "rsp_prod");
    bad.words.set(name, (base + distance) >>> 0);
    bad.guest.notify();
    await settled();
    // Where the guest has read to is looked at when there is something to write.
    if (name === "rsp_cons") bad.put(message(XS_READ, "/\0"));
    await settled();
    assert.equal(bad.words.get("error"), XENSTORE_ERROR_RINGIDX, `${name} off by ${distance}`);
    assert.deepEqual(lost, ["1 ERANGE"]);
    assert.equal(await neighbour.ask(XS_WRITE, ["a", "b"]), "OK");
    assert.equal(await zero.read("/local/domain/2/a"), "b\0");
    assert.equal(daemon.clients, 2);
    // It is looked at no more.
    bad.words.set("req_prod", bad.words.get("req_cons"));
    bad.put(message(XS_DIRECTORY, "/\0"));
    await settled();
    assert.equal(bad.words.get("error"), XENSTORE_ERROR_RINGIDX);
  }
});

test("a message that is too long is a violation that the page names", async () => {
  const { daemon, lost, bad } = await world();
  await using _ = daemon;
  const header = Buffer.from(message(XS_READ, ""));
  header.writeUInt32LE(0xffff_ffff, 12);
  bad.put(header);
  await settled();
  assert.equal(bad.words.get("error"), XENSTORE_ERROR_PROTO);
  assert.deepEqual(lost, ["1 EPROTO"]);
});

test("a guest whose connection ended is connected anew when it asks, with nothing of what was", async () => {
  const { daemon, zero, bad } = await world();
  await using _ = daemon;
  const first = new RawClient(connectRing({ page: bad.page, channel: bad.guest }));
  assert.equal(await first.ask(XS_WATCH, ["a", "old"]), "OK");
  bad.words.set("req_prod", 0x1234_5678);
  bad.guest.notify();
  assert.equal(((await first.closed) as XenError).code, "ECONNRESET");
  const second = new RawClient(connectRing({ page: bad.page, channel: bad.guest }));
  assert.equal(bad.words.get("connection"), XENSTORE_RECONNECT);
  assert.equal(await second.ask(XS_WATCH, ["a", "new"]), "OK");
  assert.equal(bad.words.get("connection"), XENSTORE_CONNECTED);
  assert.equal(bad.words.get("error"), 0);
  await zero.write("/local/domain/1/a", "");
  await settled();
  assert.deepEqual(second.takeEvents(), ["a new", "a new"]);
  assert.deepEqual(first.takeEvents(), ["a old"]);
});

test("what was half sent before a reconnection is no part of what comes after", async () => {
  const { daemon, bad } = await world();
  await using _ = daemon;
  bad.put(message(XS_WRITE, "a\0half").subarray(0, 19));
  await settled();
  const client = new RawClient(connectRing({ page: bad.page, channel: bad.guest }));
  assert.equal(await client.ask(XS_DIRECTORY, ["/local/domain/1"]), "");
});

test("a guest that never reads its answers is not read either, until it does", async () => {
  const { daemon, bad, good } = await world();
  await using _ = daemon;
  const request = message(XS_READ, "/local/domain/1/nothing\0");
  let sent = 0;
  for (let turn = 0; turn < 5000; turn++) {
    const used = bad.words.get("req_prod") - bad.words.get("req_cons");
    if (1024 - used >= request.length) {
      bad.put(request);
      sent++;
    } else if (turn > 4000) break;
    if (turn % 8 === 0) await settled();
  }
  assert.ok(1024 - (bad.words.get("req_prod") - bad.words.get("req_cons")) < request.length);
  assert.ok(sent < 5000, `${sent} requests were taken`);
  const neighbour = new RawClient(connectRing({ page: good.page, channel: good.guest }));
  assert.equal(await neighbour.ask(XS_READ, ["nothing"]), "ENOENT");
  let answers = 0;
  for (let turn = 0; turn < 20_000 && answers < sent * 23; turn++) {
    answers += bad.answers.length;
    bad.words.set("rsp_cons", bad.words.get("rsp_prod"));
    bad.guest.notify();
    await settled();
  }
  assert.equal(answers, sent * 23, "each has its answer: sixteen bytes and ENOENT");
});

test("pages that change under the daemon at random hurt only their own domain", async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.log(`seed ${seed}`);
  const random = new SeededRandom(seed);
  const { daemon, bad, good } = await world();
  await using _ = daemon;
  const neighbour = new RawClient(connectRing({ page: good.page, channel: good.guest }));
  const words = Array.from({ length: 7 }, (_, i) => 2048 + i * 4);
  for (let round = 0; round < 400; round++) {
    bad.put(message(random.below(24), `n${random.below(9)}\0value`));
    const view = new DataView(bad.page.buffer);
    const at = random.below(3) === 0 ? random.below(2048) & ~3 : words[random.below(words.length)]!;
    const value = random.below(2) === 0 ? random.below(2048) : random.below(2 ** 32);
    if (random.below(2) === 0) view.setUint32(at, value, true);
    bad.guest.notify();
    if (random.below(8) === 0) bad.words.set("connection", XENSTORE_RECONNECT);
    if (round % 4 === 0) {
      assert.equal(await neighbour.ask(XS_WRITE, ["here", `${round}`]), "OK");
    }
  }
  bad.words.set("connection", XENSTORE_RECONNECT);
  bad.guest.notify();
  await settled();
  const client = new RawClient(connectRing({ page: bad.page, channel: bad.guest }));
  assert.equal(await client.ask(XS_WRITE, ["here", "too"]), "OK");
});

for (const where of ["worker", "process"] as const) {
  test(`a domain in a ${where} has its xenstore by its ring, and a killed one leaves nothing`, async () => {
    await using machine = await EmbeddedMachine.create();
    const zero = await machine.createDomain(0);
    const ticket = await machine.domainTicket(3, where, { xenstore: "ring" });
    await zero.store.mkdir("/local/domain/3");
    await zero.store.setPermissions("/local/domain/3", [{ domid: 3, access: "none" }]);
    await using far = await Far.start(ticket);
    const long = "v".repeat(1800);
    await far.call("write", "long", long);
    assert.equal(await zero.store.read("/local/domain/3/long"), long);
    assert.equal(await far.call("read", "long"), long);
    const clients = machine.xenstore.clients;
    await far.kill();
    await machine.destroyDomain(3);
    assert.equal(await zero.store.read("/local/domain/3"), undefined);
    assert.ok(machine.xenstore.clients < clients);
  });
}
