/** Messages that the C daemon of Xen 4.17 does not have, as docs/misc/xenstore.txt of later ones says, and limits. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  XS_CONTROL,
  XS_GET_FEATURE,
  XS_GET_QUOTA,
  XS_INTRODUCE,
  XS_MKDIR,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_FEATURE,
  XS_SET_PERMS,
  XS_SET_QUOTA,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_WATCH,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { RawClient } from "./raw-client.ts";

/** A daemon with raw clients as domains 0 and 1; domain 1 has a directory of its own, and domains to 9 exist. */
async function start(options: ConstructorParameters<typeof XenStoreDaemon>[0] = {}) {
  const daemon = new XenStoreDaemon({ domainExists: (domid) => domid < 10, ...options });
  const zero = new RawClient(daemon.connect(0));
  const one = new RawClient(daemon.connect(1));
  daemon.introduce(1);
  await zero.ask(XS_MKDIR, ["/local/domain/1"]);
  await zero.ask(XS_SET_PERMS, ["/local/domain/1", "n1"]);
  return { daemon, zero, one, [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
}

test("features of a domain can be taken away until it is introduced", async () => {
  await using store = await start();
  const { daemon, zero, one } = store;
  assert.equal(await zero.ask(XS_GET_FEATURE, []), "6");
  assert.equal(await one.ask(XS_GET_FEATURE, []), "6");
  assert.equal(await one.ask(XS_GET_FEATURE, ["1"]), "EACCES");
  assert.equal(await one.ask(XS_SET_FEATURE, ["1", "0"]), "EACCES");
  assert.equal(await zero.ask(XS_SET_FEATURE, ["1", "2"]), "EBUSY");
  assert.equal(await zero.ask(XS_SET_FEATURE, ["2", "8"]), "EINVAL");
  assert.equal(await zero.ask(XS_SET_FEATURE, ["2"]), "EINVAL");
  assert.equal(await zero.ask(XS_SET_FEATURE, ["40", "2"]), "ENOENT");
  assert.equal(await zero.ask(XS_SET_FEATURE, ["2", "2"]), "OK");
  assert.equal(await zero.ask(XS_GET_FEATURE, ["2"]), "2");
  assert.equal(await zero.ask(XS_GET_FEATURE, ["1", "2"]), "EINVAL");
  assert.equal(await zero.ask(XS_GET_FEATURE, ["x"]), "EINVAL");
  const two = new RawClient(daemon.connect(2));
  assert.equal(await two.ask(XS_GET_FEATURE, []), "2");
  assert.equal(await two.ask(XS_WATCH, ["/a", "t", "1"]), "EINVAL");
  assert.equal(await two.ask(XS_WATCH, ["/a", "t"]), "OK");
});

test("a watch with a depth hears of so many levels below its path", async () => {
  await using store = await start();
  const { zero } = store;
  for (const depth of ["0", "1", "2"]) await zero.ask(XS_WATCH, ["/a", depth, depth]);
  for (const wrong of ["-1", "x", ""]) {
    assert.equal(await zero.ask(XS_WATCH, ["/a", "wrong", wrong]), "EINVAL", wrong);
  }
  zero.takeEvents();
  await zero.ask(XS_WRITE, ["/a", ""]);
  await zero.ask(XS_WRITE, ["/a/b", ""]);
  await zero.ask(XS_WRITE, ["/a/b/c", ""]);
  await zero.ask(XS_WRITE, ["/a/b/c/d", ""]);
  const heard = ["/a 0", "/a 1", "/a 2", "/a/b 1", "/a/b 2", "/a/b/c 2"];
  assert.deepEqual(zero.takeEvents(), heard);
});

test("a special watch with a depth names the domain, and one domain alone can be watched", async () => {
  await using store = await start();
  const { daemon, zero } = store;
  for (const path of ["@introduceDomain", "@releaseDomain"]) {
    await zero.ask(XS_WATCH, [path, "plain"]);
    await zero.ask(XS_WATCH, [path, "none", "0"]);
    await zero.ask(XS_WATCH, [path, "deep", "1"]);
  }
  await zero.ask(XS_WATCH, ["@releaseDomain/3", "three"]);
  zero.takeEvents();
  for (const domid of [2, 3]) daemon.introduce(domid);
  for (const domid of [2, 3]) await zero.ask(XS_RELEASE, [String(domid)]);
  assert.deepEqual(zero.takeEvents(), [
    "@introduceDomain plain",
    "@introduceDomain/2 deep",
    "@introduceDomain plain",
    "@introduceDomain/3 deep",
    "@releaseDomain plain",
    "@releaseDomain/2 deep",
    "@releaseDomain plain",
    "@releaseDomain/3 deep",
    "@releaseDomain/3 three",
  ]);
});

test("who may read the root hears nothing of domains, for that the special nodes decide", async () => {
  await using store = await start();
  const { daemon, zero, one } = store;
  await zero.ask(XS_SET_PERMS, ["/", "r0"]);
  await one.ask(XS_WATCH, ["@introduceDomain", "t"]);
  one.takeEvents();
  daemon.introduce(2);
  assert.equal(await one.ask(XS_READ, ["/"]), "");
  assert.deepEqual(one.takeEvents(), []);
  await zero.ask(XS_SET_PERMS, ["@introduceDomain", "n0", "r1"]);
  daemon.introduce(3);
  assert.equal(await one.ask(XS_READ, ["/"]), "");
  assert.deepEqual(one.takeEvents(), ["@introduceDomain t"]);
});

test("a domain that shuts down is told once, and again after it resumed", async () => {
  await using store = await start();
  const { daemon, zero } = store;
  await zero.ask(XS_WATCH, ["@releaseDomain", "t"]);
  zero.takeEvents();
  daemon.shutdown(5);
  daemon.shutdown(1);
  daemon.shutdown(1);
  assert.equal(await zero.ask(XS_RESUME, ["1"]), "OK");
  assert.deepEqual(zero.takeEvents(), ["@releaseDomain t"]);
  daemon.shutdown(1);
  await zero.ask(XS_READ, ["/"]);
  assert.deepEqual(zero.takeEvents(), ["@releaseDomain t"]);
});

test("a domain that is introduced again begins without watches and transactions", async () => {
  await using store = await start();
  const { zero, one } = store;
  await one.ask(XS_WATCH, ["x", "t"]);
  const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await zero.ask(XS_INTRODUCE, ["1", "1", "7"]), "OK");
  one.takeEvents();
  await zero.ask(XS_WRITE, ["/local/domain/1/x", "1"]);
  assert.equal(await one.ask(XS_READ, ["x"], id), "ENOENT");
  assert.deepEqual(one.takeEvents(), []);
  assert.equal(await zero.ask(XS_INTRODUCE, ["40", "1", "7"]), "EINVAL");
});

test("watches and transactions can be reset from within a transaction", async () => {
  await using store = await start();
  const { one } = store;
  const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
  await one.ask(XS_WRITE, ["x", "1"], id);
  assert.equal(await one.ask(XS_RESET_WATCHES, [""], id), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], id), "ENOENT");
  assert.equal(await one.ask(XS_READ, ["x"]), "ENOENT");
});

test("quotas are read and set for all domains and for one, and 0 is none", async () => {
  await using store = await start();
  const { zero, one } = store;
  const names = (await zero.ask(XS_GET_QUOTA, [])).split(" ");
  for (const name of ["nodes", "watches", "transactions", "node-size", "permissions", "memory"]) {
    assert.ok(names.includes(name), name);
  }
  for (const name of names) assert.match(await zero.ask(XS_GET_QUOTA, [name]), /^\d+$/);
  assert.equal(await one.ask(XS_GET_QUOTA, ["nodes"]), "EACCES");
  assert.equal(await one.ask(XS_SET_QUOTA, ["nodes", "0"]), "EACCES");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["1", "nodes"]), "1000");
  assert.equal(await zero.ask(XS_SET_QUOTA, ["nodes", "3"]), "OK");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["1", "nodes"]), "3");
  assert.equal(await zero.ask(XS_SET_QUOTA, ["1", "node-permissions", "2"]), "OK");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["1", "permissions"]), "2");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["2", "permissions"]), "5");
  for (const words of [
    ["nodes"],
    ["a", "1"],
    ["nodes", "x"],
    ["nodes", "-1"],
    ["1", "1", "1", "1"],
  ]) {
    assert.equal(await zero.ask(XS_SET_QUOTA, words), "EINVAL", words.join());
  }
  assert.equal(await zero.ask(XS_SET_QUOTA, ["40", "nodes", "1"]), "ENOENT");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["40", "nodes"]), "ENOENT");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["nope"]), "EINVAL");
  // The directory is one of its nodes.
  assert.equal(await one.ask(XS_WRITE, ["a/b", ""]), "OK");
  assert.equal(await one.ask(XS_WRITE, ["c", ""]), "ENOSPC");
  assert.equal(await zero.ask(XS_SET_QUOTA, ["1", "nodes", "0"]), "OK");
  assert.equal(await zero.ask(XS_GET_QUOTA, ["1", "nodes"]), "0");
  assert.equal(await one.ask(XS_WRITE, ["c", ""]), "OK");
  assert.equal(await zero.ask(XS_SET_QUOTA, ["1", "path-max", "8"]), "OK");
  assert.equal(await one.ask(XS_WRITE, ["nine-long", ""]), "EINVAL");
  assert.equal(await one.ask(XS_SET_PERMS, ["c", "n1", "r2", "r3"]), "ENOSPC");
});

test("the memory of a domain is limited: its nodes, whoever makes them larger, and its watches", async () => {
  await using store = await start({ limits: { memoryBytes: 1000 } });
  const { zero, one } = store;
  const large = "x".repeat(700);
  assert.equal(await one.ask(XS_WRITE, ["a", large]), "OK");
  assert.equal(await one.ask(XS_WRITE, ["b", large]), "ENOMEM");
  assert.equal(await one.ask(XS_WRITE, ["a", "x".repeat(1000)]), "ENOMEM");
  assert.equal(await one.ask(XS_WATCH, ["a", "t".repeat(300)]), "ENOMEM");
  const refused = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.ask(XS_WRITE, ["b", large], refused), "ENOMEM");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["F"], refused), "OK");
  const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.ask(XS_RM, ["a"], id), "OK");
  assert.equal(await one.ask(XS_WRITE, ["b", large], id), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], id), "OK");
  assert.equal(await one.ask(XS_WATCH, ["a", "t".repeat(60)]), "OK");
  assert.match(await zero.ask(XS_CONTROL, ["quota", "1"]), /memory {10}: {6}\d{3}\n/);
  assert.equal(await zero.ask(XS_CONTROL, ["check"]), "OK");
});

test("a client that does not read has so many answers wait, and is answered all in the end", async () => {
  await using store = await start({ limits: { outstanding: 2 } });
  const { one } = store;
  const answers = await Promise.all(
    Array.from({ length: 50 }, () => one.ask(XS_READ, ["nothing"])),
  );
  assert.deepEqual(answers, Array(50).fill("ENOENT"));
});

test("the log tells of requests while it is on, and never more than a line for each", async () => {
  const lines: string[] = [];
  await using store = await start({ onTrace: (line) => lines.push(line) });
  const { zero, one } = store;
  assert.equal(await zero.ask(XS_CONTROL, ["log"]), "EINVAL");
  assert.equal(await zero.ask(XS_CONTROL, ["log", "on"]), "OK");
  await one.ask(XS_WRITE, ["a\n", "1"]);
  assert.equal(await zero.ask(XS_CONTROL, ["log", "off"]), "OK");
  await one.ask(XS_READ, ["a"]);
  assert.equal(await zero.ask(XS_CONTROL, ["print", "hello\x1b"]), "OK");
  assert.equal(await one.ask(XS_CONTROL, ["print", "hello"]), "EACCES");
  assert.deepEqual(lines.slice(1), ["domain 1: message 11 a? 1 : EINVAL", "control: hello?"]);
});
