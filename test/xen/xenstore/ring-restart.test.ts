/** Guests on rings go on while their daemon is stopped, killed and started again. */
import assert from "node:assert/strict";
import { copyFileSync, statSync } from "node:fs";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { SeededRandom } from "../../../src/util/random.ts";
import {
  encodeXenStoreMessage,
  XENSTORE_SERVER_FEATURE_WATCHDEPTH,
  XS_DIRECTORY,
  XS_MKDIR,
  XS_READ,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { XENSTORE_ERROR_RINGIDX } from "../../../src/wire/xenstore-ring.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import type { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { connectRing } from "../../../src/xen/xenstore/ring-guest.ts";
import { StoreDaemon } from "../../support/store-daemon.ts";
import { RawClient } from "./raw-client.ts";
import { daemonWithRings, Ring, settled } from "./ring-world.ts";
import { fastFolder } from "./whole-tree.ts";

/** Rings of domains 1 and 2, and daemons that serve them, one after the other. */
class World {
  readonly rings = new Map([1, 2].map((domid) => [domid, new Ring()]));
  readonly notes: string[] = [];
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  start(): XenStoreDaemon {
    const state = { file: this.#file, onNote: (line: string) => void this.notes.push(line) };
    return daemonWithRings(this.rings, { state });
  }

  /** The first, with homes for both. */
  async begin(): Promise<XenStoreDaemon> {
    const daemon = this.start();
    const zero = new XenStoreClient(daemon.connect(0));
    for (const domid of this.rings.keys()) {
      await zero.mkdir(`/local/domain/${domid}`);
      await zero.setPermissions(`/local/domain/${domid}`, [{ domid, access: "read" }]);
      daemon.introduce(domid, 1);
    }
    return daemon;
  }

  guest(domid: number): RawClient {
    const { page, guest: channel } = this.rings.get(domid)!;
    return new RawClient(connectRing({ page, channel }));
  }
}

async function stop(daemon: XenStoreDaemon): Promise<void> {
  await daemon[Symbol.asyncDispose]();
  await settled();
}

test("a ring names the features of its domain", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  await using _ = await world.begin();
  const features = world.rings.get(1)!.words.get("server_features");
  assert.equal(features & XENSTORE_SERVER_FEATURE_WATCHDEPTH, XENSTORE_SERVER_FEATURE_WATCHDEPTH);
});

test("watches of a ring outlive the daemon, in their order, and fire once each", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  let daemon = await world.begin();
  const [one, two] = [world.guest(1), world.guest(2)];
  for (const [guest, path, token, depth] of [
    [two, "/local/domain", "b", "9"],
    [one, "/local/domain", "a", "1"],
    [one, "x", "c", undefined],
    [two, "/local/domain/1", "gone", undefined],
  ] as const) {
    const strings = depth === undefined ? [path, token] : [path, token, depth];
    assert.equal(await guest.ask(XS_WATCH, strings), "OK");
  }
  assert.equal(await two.ask(XS_UNWATCH, ["/local/domain/1", "gone"]), "OK");
  await settled();
  for (const guest of [one, two]) guest.takeEvents();
  for (let restart = 0; restart < 3; restart++) {
    await stop(daemon);
    daemon = world.start();
    await settled();
    assert.deepEqual([one.takeEvents(), two.takeEvents()], [[], []], "nothing waited");
    assert.equal(await one.ask(XS_WRITE, ["x/y", "1"]), "OK");
    await settled();
    assert.deepEqual(one.takeEvents(), ["x/y c"]);
    assert.deepEqual(two.takeEvents(), ["/local/domain/1/x/y b"]);
  }
  assert.equal(await one.ask(XS_WATCH, ["x", "c"]), "EEXIST");
  daemon.release(2);
  await stop(daemon);
  daemon = world.start();
  assert.deepEqual(daemon.introduced, [0, 1]);
  await stop(daemon);
});

test("a request that was half sent, and one sent while nobody served, are answered by the next daemon", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  const ring = world.rings.get(1)!;
  let daemon = await world.begin();
  const payload = Buffer.from("half\0whole");
  const bytes = encodeXenStoreMessage({ type: XS_WRITE, requestId: 7, transactionId: 0, payload });
  ring.put(bytes.subarray(0, 19));
  await settled();
  assert.equal(ring.words.get("req_cons"), 19);
  await stop(daemon);
  daemon = world.start();
  await stop(daemon);
  ring.put(bytes.subarray(19));
  daemon = world.start();
  await settled();
  assert.equal(ring.answers.readUInt32LE(4), 7);
  assert.equal(ring.answers.length, 19);
  const zero = new XenStoreClient(daemon.connect(0));
  assert.equal(await zero.read("/local/domain/1/half"), "whole");
  await stop(daemon);
});

test("room in a ring is given when what was read cannot be forgotten any more", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  const daemon = await world.begin();
  const ring = world.rings.get(1)!;
  const payload = Buffer.from("half\0whole");
  const bytes = encodeXenStoreMessage({ type: XS_WRITE, requestId: 7, transactionId: 0, payload });
  const killed: [Ring, World][] = [];
  // As a daemon leaves them that is killed whenever the guest is notified.
  ring.onnotify = () => {
    const copy = new World(folder.file(`killed${killed.length}`));
    const page = new Ring();
    page.page.set(ring.page);
    copy.rings.set(1, page);
    copyFileSync(folder.file("state"), folder.file(`killed${killed.length}`));
    killed.push([page, copy]);
  };
  for (let at = 0; at < bytes.length; at += 5) {
    ring.put(bytes.subarray(at, at + 5));
    await settled();
  }
  await stop(daemon);
  assert.ok(killed.length >= 4, `${killed.length}`);
  for (const [page, copy] of killed) {
    const next = copy.start();
    await settled();
    page.put(bytes.subarray(page.words.get("req_prod")));
    await settled();
    assert.equal(page.answers.length, 19);
    const zero = new XenStoreClient(next.connect(0));
    assert.equal(await zero.read("/local/domain/1/half"), "whole");
    await stop(next);
  }
});

test("an answer longer than the ring goes on where the daemon before stopped", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  let daemon = await world.begin();
  const ring = world.rings.get(1)!;
  const zero = new XenStoreClient(daemon.connect(0));
  const value = Array.from({ length: 300 }, (_, i) => `${i}`.padStart(10, "0")).join("");
  await zero.write("/local/domain/1/long", value);
  await zero.setPermissions("/local/domain/1/long", [{ domid: 1, access: "none" }]);
  const payload = Buffer.from("long\0");
  const ask = encodeXenStoreMessage({ type: XS_READ, requestId: 1, transactionId: 0, payload });
  // The second answer waits behind the first.
  ring.put(Buffer.concat([ask, ask]));
  const parts: Buffer[] = [];
  for (let part = 0; part < 7; part++) {
    await settled();
    parts.push(ring.answers.subarray(0, 900));
    ring.words.set("rsp_cons", ring.words.get("rsp_cons") + parts.at(-1)!.length);
    ring.guest.notify();
    await stop(daemon);
    daemon = world.start();
  }
  await settled();
  parts.push(ring.answers);
  const all = Buffer.concat(parts);
  const length = 16 + value.length;
  assert.equal(all.length, 2 * length);
  for (const at of [0, length]) {
    assert.equal(all.toString("latin1", at + 16, at + length), value);
  }
  await stop(daemon);
});

test("a transaction that was open reads on, and ends with EAGAIN", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  let daemon = await world.begin();
  const one = world.guest(1);
  assert.equal(await one.ask(XS_WRITE, ["n", "1"]), "OK");
  const ids = [
    await one.ask(XS_TRANSACTION_START, [""]),
    await one.ask(XS_TRANSACTION_START, [""]),
  ];
  const [first, second] = ids.map(Number);
  assert.equal(await one.raw(XS_WRITE, "n\x002", first), "OK");
  await stop(daemon);
  daemon = world.start();
  assert.equal(await one.ask(XS_READ, ["n"], first), "1");
  assert.equal(await one.raw(XS_WRITE, "n\x003", first), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], first), "EAGAIN");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], first), "ENOENT");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["F"], second), "OK");
  assert.equal(await one.ask(XS_READ, ["n"]), "1");
  const next = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.raw(XS_WRITE, "n\x004", next), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], next), "OK");
  assert.equal(await one.ask(XS_READ, ["n"]), "4");
  await stop(daemon);
});

test("events that waited for a guest are one of each of its watches", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  let daemon = await world.begin();
  const ring = world.rings.get(1)!;
  const watch = (token: string) => {
    const payload = Buffer.from(`x\0${token}\0`);
    return encodeXenStoreMessage({ type: XS_WATCH, requestId: 1, transactionId: 0, payload });
  };
  ring.put(Buffer.concat([watch("a"), watch("b")]));
  await settled();
  const zero = new XenStoreClient(daemon.connect(0));
  for (let i = 0; i < 100; i++) await zero.write(`/local/domain/1/x/${i}`, "");
  await settled();
  await stop(daemon);
  daemon = world.start();
  const heard: Buffer[] = [];
  for (let turn = 0; turn < 20; turn++) {
    heard.push(ring.answers);
    ring.words.set("rsp_cons", ring.words.get("rsp_prod"));
    ring.guest.notify();
    await settled();
  }
  const text = Buffer.concat(heard).toString("latin1");
  // One event has 20 bytes.
  assert.ok(text.endsWith("x\0b\0") && text.slice(0, -20).endsWith("x\0a\0"), text.slice(-60));
  await stop(daemon);
});

test("a ring that says what its daemon never did is refused, and hurts nobody", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  let daemon = await world.begin();
  const [one, two] = [world.guest(1), world.guest(2)];
  assert.equal(await one.ask(XS_WRITE, ["a", "1"]), "OK");
  assert.equal(await two.ask(XS_WATCH, ["a", "t"]), "OK");
  await stop(daemon);
  const { words } = world.rings.get(1)!;
  words.set("rsp_prod", (words.get("rsp_prod") + 500) >>> 0);
  daemon = world.start();
  await settled();
  assert.equal(words.get("error"), XENSTORE_ERROR_RINGIDX);
  assert.equal(await two.ask(XS_WRITE, ["a", "2"]), "OK");
  await stop(daemon);
  daemon = world.start();
  await settled();
  assert.equal(words.get("error"), XENSTORE_ERROR_RINGIDX, "until it asks to be connected anew");
  const again = world.guest(1);
  assert.equal(await again.ask(XS_READ, ["a"]), "1");
  await stop(daemon);
});

test("a ring that cannot be opened any more loses its watches, and is said so", async () => {
  await using folder = await fastFolder();
  const world = new World(folder.file("state"));
  await stop(await world.begin());
  world.rings.delete(2);
  await using daemon = world.start();
  assert.deepEqual(daemon.introduced, [0, 1, 2]);
  assert.match(world.notes.join("\n"), /^[^\n]*domain 2[^\n]*$/);
});

/** Three kinds of work of a guest that would show a request done twice, or not at all, or an answer too many. */
async function work(
  guest: RawClient,
  other: RawClient,
  random: SeededRandom,
  until: () => boolean,
) {
  const count = { answers: 0, transactions: 0 };
  const ask = async (type: number, text: string, transaction = 0): Promise<string> => {
    const answer = await guest.raw(type, text, transaction);
    count.answers++;
    return answer;
  };
  const is = async (type: number, text: string, answer: string, transaction = 0) =>
    assert.equal(await ask(type, text, transaction), answer, `${type} ${text.slice(0, 40)}`);
  const value = "v".repeat(1500);
  const writes = async () => {
    for (let i = 0; !until(); i++) {
      const pipelined = [is(XS_WRITE, `n\0${i}${value}`, "OK"), is(XS_READ, "n\0", `${i}${value}`)];
      if (random.below(3) === 0) pipelined.push(is(XS_MKDIR, `d${i % 9}\0`, "OK"));
      await Promise.all(pipelined);
    }
  };
  const watches = async () => {
    for (let i = 0; !until(); i++) {
      await is(XS_WATCH, `w\0t${i}\0`, "OK");
      if (random.below(2) === 0) await is(XS_WATCH, `w\0t${i}\0`, "EEXIST");
      await is(XS_UNWATCH, `w\0t${i}\0`, "OK");
    }
  };
  const transactions = async () => {
    await is(XS_WRITE, "count\x000", "OK");
    while (!until()) {
      const id = Number(await ask(XS_TRANSACTION_START, "\0"));
      assert.ok(id > 0);
      await is(XS_READ, "count\0", `${count.transactions}`, id);
      await is(XS_WRITE, `count\0${count.transactions + 1}`, "OK", id);
      const end = await ask(XS_TRANSACTION_END, "T\0", id);
      if (end === "OK") count.transactions++;
      else assert.equal(end, "EAGAIN");
      await is(XS_READ, "count\0", `${count.transactions}`);
    }
  };
  const signals = async () => {
    await is(XS_WATCH, "/local/domain/2/signal\0s\0", "OK");
    for (let i = 0; !until(); i++) {
      assert.equal(await other.raw(XS_WRITE, `signal\0${i}`), "OK");
      count.answers++;
      while (!guest.takeEvents().includes("/local/domain/2/signal s")) await nextTurn();
      await is(XS_READ, "/local/domain/2/signal\0", `${i}`);
    }
  };
  return { count, done: Promise.all([writes(), watches(), transactions(), signals()]) };
}

/** A request that got lost is waited for no longer than a slow machine could take. */
async function progress(count: { answers: number }, enough: () => boolean): Promise<void> {
  let [seen, since] = [count.answers, performance.now()];
  while (!enough()) {
    await nextTurn();
    if (count.answers > seen) [seen, since] = [count.answers, performance.now()];
    assert.ok(performance.now() - since < 60_000, `nothing was answered after ${seen} answers`);
  }
}

test("a daemon that is killed again and again loses nothing that it answered, and does nothing twice", async () => {
  const seed = Number(process.env.VBDKIT_RESTART_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`seed ${seed}`);
  const random = new SeededRandom(seed);
  await using folder = await fastFolder();
  const file = folder.file("state");
  await using daemon = new StoreDaemon({ file, domains: 2 });
  await daemon.start();
  const [one, two] = [1, 2].map((domid) => new RawClient(connectRing(daemon.ring(domid))));
  const ended = Promise.race([one!.closed, two!.closed]).then((reason) => {
    throw reason ?? new Error("a ring was closed");
  });
  ended.catch(() => {});
  let over = false;
  const { count, done } = await work(one!, two!, random, () => over);
  let failure: unknown;
  Promise.race([done, ended]).catch((error) => {
    failure = error;
  });
  const kills = Number(process.env.VBDKIT_RESTARTS ?? 4);
  for (let kill = 0; kill < kills; kill++) {
    const enough = count.answers + 20 + random.below(600);
    await progress(count, () => count.answers >= enough || failure !== undefined);
    if (failure !== undefined) throw failure;
    await daemon.end(kill % 4 === 3 ? "SIGTERM" : "SIGKILL");
    await daemon.start();
  }
  over = true;
  let idle = false;
  const ending = () => {
    idle = true;
  };
  done.then(ending, ending);
  await progress(count, () => idle || failure !== undefined);
  await Promise.race([done, ended]);
  assert.ok(count.transactions > 0);
  assert.deepEqual(daemon.notes, []);
  assert.ok(statSync(file).size < 4 * 2 ** 20);
  // Each client has as many answers as it asked for: the next is the next one's.
  assert.equal(await one!.ask(XS_READ, ["count"]), `${count.transactions}`);
  assert.match(await one!.ask(XS_DIRECTORY, [""]), /EINVAL/);
});
