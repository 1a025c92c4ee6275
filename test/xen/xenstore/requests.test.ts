/** What the daemon answers, on the wire: the errors and orders of the C daemon. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_DOMAIN_PATH,
  XS_GET_PERMS,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_PERMS,
  XS_SET_TARGET,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WATCH_EVENT,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { RawClient } from "./raw-client.ts";

/** A daemon with raw clients as domains 0, 1 and 2. Domain 1 has a directory of its own. */
async function start(options: ConstructorParameters<typeof XenStoreDaemon>[0] = {}) {
  const daemon = new XenStoreDaemon(options);
  const [zero, one, two] = [0, 1, 2].map((domid) => new RawClient(daemon.connect(domid))) as [
    RawClient,
    RawClient,
    RawClient,
  ];
  daemon.introduce(1);
  daemon.introduce(2);
  await zero.ask(XS_MKDIR, ["/local/domain/1"]);
  await zero.ask(XS_SET_PERMS, ["/local/domain/1", "n1"]);
  const all = { daemon, zero, one, two };
  return { ...all, [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
}

test("a value is what was written, NULs and all", async () => {
  await using store = await start();
  const { zero } = store;
  assert.equal(await zero.raw(XS_WRITE, "/a\0x\0y\xff"), "OK");
  assert.equal(await zero.ask(XS_READ, ["/a"]), "x,y\xff");
});

test("writing makes missing parents, and making a node twice is no error", async () => {
  await using store = await start();
  const { zero } = store;
  assert.equal(await zero.ask(XS_WRITE, ["/a/b/c", "1"]), "OK");
  assert.equal(await zero.ask(XS_MKDIR, ["/a/b/c"]), "OK");
  assert.equal(await zero.ask(XS_DIRECTORY, ["/a"]), "b");
  assert.equal(await zero.ask(XS_READ, ["/a/b"]), "");
});

test("removing a missing node is no error below a parent that is there", async () => {
  await using store = await start();
  const { zero } = store;
  assert.equal(await zero.ask(XS_RM, ["/nothing"]), "OK");
  assert.equal(await zero.ask(XS_RM, ["/nothing/below"]), "ENOENT");
  assert.equal(await zero.ask(XS_RM, ["/"]), "EINVAL");
});

test("requests that are no requests are told apart", async () => {
  await using store = await start();
  const { zero, one } = store;
  assert.equal(await zero.raw(XS_READ, ""), "EINVAL");
  assert.equal(await zero.raw(XS_READ, "/a"), "EINVAL");
  assert.equal(await zero.raw(XS_READ, "/a\0b\0"), "EINVAL");
  assert.equal(await zero.raw(XS_WRITE, "/a"), "EINVAL");
  assert.equal(await zero.raw(XS_WATCH, "/a\0token"), "EINVAL");
  assert.equal(await zero.raw(XS_SET_PERMS, "/a\0"), "EINVAL");
  for (const type of [XS_WATCH_EVENT, 16, 20, 99, 0xffff, 0xffff_ffff]) {
    assert.equal(await zero.raw(type, "/\0"), "ENOSYS");
  }
  for (const type of [XS_CONTROL, XS_INTRODUCE, XS_RELEASE, XS_RESUME, XS_SET_TARGET]) {
    assert.equal(await one.ask(type, ["1", "1", "1"]), "EACCES");
  }
  assert.equal(await zero.ask(XS_READ, ["/"], 77), "ENOENT");
});

test("a domain reads, writes and lists only what it may, and is not told what is there", async () => {
  await using store = await start();
  const { zero, one, two } = store;
  await zero.ask(XS_WRITE, ["/secret/x", "1"]);
  assert.equal(await one.ask(XS_READ, ["/secret/x"]), "EACCES");
  assert.equal(await one.ask(XS_READ, ["/secret/missing"]), "EACCES");
  assert.equal(await one.ask(XS_WRITE, ["/mine", "1"]), "EACCES");
  assert.equal(await one.ask(XS_DIRECTORY, ["/"]), "EACCES");
  assert.equal(await one.ask(XS_READ, ["missing"]), "ENOENT");
  assert.equal(await one.ask(XS_WRITE, ["data/x", "1"]), "OK");
  assert.equal(await two.ask(XS_READ, ["/local/domain/1/data/x"]), "EACCES");
  assert.equal(await one.ask(XS_SET_PERMS, ["data/x", "n1", "r2"]), "OK");
  assert.equal(await two.ask(XS_READ, ["/local/domain/1/data/x"]), "1");
  assert.equal(await two.ask(XS_WRITE, ["/local/domain/1/data/x", "2"]), "EACCES");
  assert.equal(await two.ask(XS_SET_PERMS, ["/local/domain/1/data/x", "b1"]), "EACCES");
});

test("a new node has its parent's permissions and its maker as owner", async () => {
  await using store = await start();
  const { zero, one, two } = store;
  await zero.ask(XS_MKDIR, ["/shared"]);
  await zero.ask(XS_SET_PERMS, ["/shared", "n0", "b1", "r2"]);
  await one.ask(XS_WRITE, ["/shared/a/b", "1"]);
  assert.equal(await zero.ask(XS_GET_PERMS, ["/shared/a/b"]), "n1,b1,r2");
  assert.equal(await two.ask(XS_READ, ["/shared/a/b"]), "1");
  await zero.ask(XS_WRITE, ["/shared/c", "1"]);
  assert.equal(await zero.ask(XS_GET_PERMS, ["/shared/c"]), "n0,b1,r2");
});

test("an owner may not give its node away, and domain 0 may", async () => {
  await using store = await start();
  const { zero, one } = store;
  await one.ask(XS_WRITE, ["x", "1"]);
  assert.equal(await one.ask(XS_SET_PERMS, ["x", "n2"]), "EPERM");
  assert.equal(await zero.ask(XS_SET_PERMS, ["/local/domain/1/x", "n2"]), "OK");
  assert.equal(await one.ask(XS_READ, ["x"]), "EACCES");
});

test("permissions name domains that exist", async () => {
  await using store = await start({ domainExists: () => false });
  const { zero } = store;
  await zero.ask(XS_MKDIR, ["/a"]);
  assert.equal(await zero.ask(XS_SET_PERMS, ["/a", "n9"]), "ENOENT");
  assert.equal(await zero.ask(XS_SET_PERMS, ["/a", "n0", "r9", "r2"]), "OK");
  // Shown, as the C daemon does, and worth nothing to a domain that comes later.
  assert.equal(await zero.ask(XS_GET_PERMS, ["/a"]), "n0,r9,r2");
  store.daemon.introduce(9);
  const nine = new RawClient(store.daemon.connect(9));
  assert.equal(await nine.ask(XS_READ, ["/a"]), "EACCES");
  for (const wrong of ["x0", "r", "n-1", "n0 ", "n70000"]) {
    assert.equal(await zero.ask(XS_SET_PERMS, ["/a", wrong]), "EINVAL", wrong);
  }
});

test("a device model has the rights of the domain it serves", async () => {
  await using store = await start();
  const { zero, one, two } = store;
  await one.ask(XS_WRITE, ["x", "1"]);
  assert.equal(await two.ask(XS_READ, ["/local/domain/1/x"]), "EACCES");
  assert.equal(await zero.ask(XS_SET_TARGET, ["2", "1"]), "OK");
  assert.equal(await two.ask(XS_READ, ["/local/domain/1/x"]), "1");
  assert.equal(await zero.ask(XS_SET_TARGET, ["2", "9"]), "ENOENT");
});

test("a directory too large for an answer is listed in parts", async () => {
  await using store = await start();
  const { zero } = store;
  const names = Array.from({ length: 700 }, (_, i) => `name-${i}`);
  for (const name of names) await zero.ask(XS_MKDIR, [`/big/${name}`]);
  assert.equal(await zero.ask(XS_DIRECTORY, ["/big"]), "E2BIG");
  const found: string[] = [];
  let offset = 0;
  for (;;) {
    const [, ...part] = (await zero.ask(XS_DIRECTORY_PART, ["/big", String(offset)])).split(",");
    const end = part.at(-1) === "";
    found.push(...part.filter((name) => name !== ""));
    if (end) break;
    offset += part.reduce((sum, name) => sum + name.length + 1, 0);
  }
  assert.deepEqual(found, names);
  assert.match(await zero.ask(XS_DIRECTORY_PART, ["/big", "999999"]), /^\d+,$/);
  assert.equal(await zero.ask(XS_DIRECTORY_PART, ["/big", "-1"]), "EINVAL");
  assert.equal(await zero.ask(XS_DIRECTORY_PART, ["/big"]), "EINVAL");
});

test("domains are introduced once and released once", async () => {
  await using store = await start();
  const { zero } = store;
  await zero.ask(XS_WATCH, ["@introduceDomain", "i"]);
  await zero.ask(XS_WATCH, ["@releaseDomain", "r"]);
  zero.takeEvents();
  assert.equal(await zero.ask(XS_IS_DOMAIN_INTRODUCED, ["7"]), "F");
  assert.equal(await zero.ask(XS_INTRODUCE, ["7", "1", "5"]), "OK");
  assert.equal(await zero.ask(XS_INTRODUCE, ["7", "1", "5"]), "OK");
  assert.equal(await zero.ask(XS_IS_DOMAIN_INTRODUCED, ["7"]), "T");
  assert.equal(await zero.ask(XS_RESUME, ["7"]), "OK");
  assert.equal(await zero.ask(XS_RELEASE, ["7"]), "OK");
  assert.equal(await zero.ask(XS_RELEASE, ["7"]), "ENOENT");
  assert.equal(await zero.ask(XS_RELEASE, ["0"]), "EINVAL");
  assert.equal(await zero.ask(XS_INTRODUCE, ["7", "1", "0"]), "EINVAL");
  assert.equal(await zero.ask(XS_INTRODUCE, ["40000", "1", "1"]), "EINVAL");
  assert.deepEqual(zero.takeEvents(), ["@introduceDomain i", "@releaseDomain r"]);
  assert.equal(await zero.ask(XS_GET_DOMAIN_PATH, ["7"]), "/local/domain/7");
});

test("nothing of a dead domain reaches the next one of its number", async () => {
  await using store = await start();
  const { daemon, zero, one } = store;
  await one.ask(XS_WRITE, ["x", "1"]);
  await zero.ask(XS_WRITE, ["/for-one", "1"]);
  await zero.ask(XS_SET_PERMS, ["/for-one", "n0", "b1", "r2"]);
  await zero.ask(XS_WATCH, ["/", "w"]);
  await new Promise(setImmediate);
  zero.takeEvents();
  daemon.release(1);
  await one.closed;
  assert.equal(await zero.ask(XS_GET_PERMS, ["/for-one"]), "n0,b1,r2");
  assert.equal(await zero.ask(XS_DIRECTORY, ["/local/domain"]), "");
  assert.deepEqual(zero.takeEvents(), ["/local/domain/1 w"]);
  assert.equal(await zero.ask(XS_CONTROL, ["check"]), "OK");
  daemon.introduce(1);
  const next = new RawClient(daemon.connect(1));
  assert.equal(await next.ask(XS_READ, ["/for-one"]), "EACCES");
});

test("what a transaction was about to give to a domain that died is not given", async () => {
  await using store = await start();
  const { daemon, zero } = store;
  const id = Number(await zero.ask(XS_TRANSACTION_START, [""]));
  await zero.ask(XS_MKDIR, ["/a"], id);
  await zero.ask(XS_SET_PERMS, ["/a", "n1"], id);
  daemon.release(1);
  assert.equal(await zero.ask(XS_TRANSACTION_END, ["T"], id), "EAGAIN");
});

test("the root stays, whoever owns it dies", async () => {
  await using store = await start();
  const { daemon, zero } = store;
  await zero.ask(XS_SET_PERMS, ["/", "b1"]);
  daemon.release(1);
  assert.equal(await zero.ask(XS_GET_PERMS, ["/"]), "n0");
});

test("a domain's nodes, their size, permissions, watches and transactions are limited", async () => {
  const limits = { nodes: 5, nodeBytes: 200, watches: 2, transactions: 1, transactionNodes: 10 };
  await using store = await start({ limits });
  const { zero, one } = store;
  assert.equal(await one.ask(XS_WRITE, ["big", "x".repeat(200)]), "ENOSPC");
  assert.equal(await one.ask(XS_WRITE, ["a/b/c/d/e/f", "1"]), "ENOSPC");
  assert.equal(await one.ask(XS_WRITE, ["a/b/c", "1"]), "OK");
  assert.equal(await one.ask(XS_WRITE, ["a/b/d", "1"]), "OK");
  assert.equal(await one.ask(XS_WRITE, ["a/b/e", "1"]), "ENOSPC");
  assert.equal(await one.ask(XS_SET_PERMS, ["a", "n1", "r2", "r0", "r0", "r0", "r0"]), "ENOSPC");
  await one.ask(XS_RM, ["a"]);
  assert.equal(await one.ask(XS_WRITE, ["a", "1"]), "OK");
  assert.equal(await one.ask(XS_WATCH, ["a", "1"]), "OK");
  assert.equal(await one.ask(XS_WATCH, ["a", "2"]), "OK");
  assert.equal(await one.ask(XS_WATCH, ["b", "2"]), "OK");
  assert.equal(await one.ask(XS_WATCH, ["a", "3"]), "E2BIG");
  const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.ask(XS_TRANSACTION_START, [""]), "2");
  assert.equal(await one.ask(XS_TRANSACTION_START, [""]), "ENOSPC");
  for (let i = 0; i < 5; i++) await one.ask(XS_WRITE, [`a/${i}`, "1"], id);
  for (let i = 0; i < 9; i++) await one.ask(XS_READ, [`a/other-${i}`], id);
  assert.equal(await one.ask(XS_READ, ["b"], id), "ENOSPC");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], id), "ENOMEM");
  assert.equal(await one.ask(XS_RESET_WATCHES, [""]), "OK");
  assert.equal(await one.ask(XS_RESET_WATCHES, [""]), "OK");
  assert.equal(await one.ask(XS_WATCH, ["a", "3"]), "OK");
  assert.equal(await zero.ask(XS_CONTROL, ["check"]), "OK");
});

test("limits hold for transactions that commit side by side", async () => {
  await using store = await start({ limits: { nodes: 5 } });
  const { one } = store;
  const ids = [];
  for (let i = 0; i < 2; i++) ids.push(Number(await one.ask(XS_TRANSACTION_START, [""])));
  for (const id of ids) {
    for (let i = 0; i < 3; i++) {
      assert.equal(await one.ask(XS_MKDIR, [`${id}-${i}`], id), "OK");
    }
  }
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], ids[0]), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], ids[1]), "ENOSPC");
  assert.equal(await one.ask(XS_DIRECTORY, ["/local/domain/1"]), "1-0,1-1,1-2");
});

test("nodes that a transaction makes are counted when it ends", async () => {
  await using store = await start({ limits: { nodes: 5 } });
  const { one } = store;
  const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.ask(XS_WRITE, ["a/b/c/d/e", "1"], id), "OK");
  assert.equal(await one.ask(XS_WRITE, ["a/b/f", "1"], id), "OK");
  assert.equal(await one.ask(XS_RM, ["a/b/c"], id), "OK");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], id), "OK");
  await one.ask(XS_MKDIR, ["a/g"]);
  const full = Number(await one.ask(XS_TRANSACTION_START, [""]));
  assert.equal(await one.ask(XS_RM, ["a/g"], full), "OK");
  assert.equal(await one.ask(XS_MKDIR, ["a/h"], full), "ENOSPC");
  assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], full), "OK");
});

test("a transaction in which a change was refused when it had begun is only good to be abandoned", async () => {
  await using store = await start({ limits: { nodeBytes: 200 } });
  const { one } = store;
  await one.ask(XS_WRITE, ["a", "1"]);
  const long = "x".repeat(200);
  await one.ask(XS_WRITE, ["full", "x".repeat(160)]);
  const refused: [number, string[]][] = [
    [XS_WRITE, ["a", long]],
    [XS_WRITE, ["b", long]],
    [XS_SET_PERMS, ["full", "n1", "r2", "r0"]],
  ];
  for (const [type, strings] of refused) {
    const id = Number(await one.ask(XS_TRANSACTION_START, [""]));
    assert.equal(await one.ask(XS_WRITE, ["a", "2"], id), "OK");
    assert.equal(await one.ask(type, strings, id), "ENOSPC");
    assert.equal(await one.ask(XS_READ, ["b"], id), "ENOENT");
    assert.equal(await one.ask(XS_TRANSACTION_END, ["T"], id), "ENOMEM");
  }
  assert.equal(await one.ask(XS_READ, ["a"]), "1");
});

test("a commit tells of its nodes in the order in which they were named, and of each what its parent lets know then", async () => {
  await using store = await start();
  const { zero, two } = store;
  await zero.ask(XS_WRITE, ["/a/b", "1"]);
  await two.ask(XS_WATCH, ["/a", "t"]);
  for (const [first, heard] of [
    ["/a", ["/a t", "/a/b t"]],
    ["/a/b", ["/a t"]],
  ] as const) {
    await zero.ask(XS_SET_PERMS, ["/a", "n0"]);
    // What it has heard before is its own affair.
    await two.ask(XS_READ, ["/a"]);
    two.takeEvents();
    const id = Number(await zero.ask(XS_TRANSACTION_START, [""]));
    await zero.ask(XS_READ, [first], id);
    await zero.ask(XS_WRITE, ["/a/b", "2"], id);
    await zero.ask(XS_SET_PERMS, ["/a", "r0"], id);
    assert.equal(await zero.ask(XS_TRANSACTION_END, ["T"], id), "OK");
    await two.ask(XS_READ, ["/a"]);
    assert.deepEqual(two.takeEvents(), heard);
  }
});

test("a watch that is set twice is EEXIST, and one that is not set is ENOENT", async () => {
  await using store = await start();
  const { zero } = store;
  assert.equal(await zero.ask(XS_WATCH, ["/a", "t"]), "OK");
  assert.equal(await zero.ask(XS_WATCH, ["/a", "t"]), "EEXIST");
  assert.equal(await zero.ask(XS_UNWATCH, ["/a", "other"]), "ENOENT");
  assert.equal(await zero.ask(XS_UNWATCH, ["/a", "t"]), "OK");
  assert.equal(await zero.ask(XS_UNWATCH, ["/a", "t"]), "ENOENT");
});
