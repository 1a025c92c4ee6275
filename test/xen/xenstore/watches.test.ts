import assert from "node:assert/strict";
import { test } from "node:test";
import {
  XS_MKDIR,
  XS_READ,
  XS_RM,
  XS_SET_PERMS,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_WATCH,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { RawClient } from "./raw-client.ts";

/** Domain 0, which changes things, and domain 1, which watches. */
async function start() {
  const daemon = new XenStoreDaemon();
  const zero = new RawClient(daemon.connect(0));
  const one = new RawClient(daemon.connect(1));
  daemon.introduce(1);
  /** Events that domain 1 has by now, beyond any that were on their way. */
  const heard = async (): Promise<string[]> => {
    await one.ask(XS_READ, ["/"]);
    return one.takeEvents();
  };
  const disposal = { [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
  return { daemon, zero, one, heard, ...disposal };
}

test("a watch fires once at once, then for the node and all below it", async () => {
  await using store = await start();
  const { zero } = store;
  assert.equal(await zero.ask(XS_WATCH, ["/a", "t"]), "OK");
  for (const path of ["/a", "/a/b", "/a/b/c", "/ab", "/"]) await zero.ask(XS_WRITE, [path, "1"]);
  assert.deepEqual(zero.takeEvents(), ["/a t", "/a t", "/a/b t", "/a/b/c t"]);
});

test("a relative watch has relative events", async () => {
  await using store = await start();
  const { zero } = store;
  await zero.ask(XS_WATCH, ["device", "t"]);
  await zero.ask(XS_WRITE, ["/local/domain/0/device/vbd", "1"]);
  assert.deepEqual(zero.takeEvents(), ["device t", "device/vbd t"]);
});

test("a watch of some depth does not hear of what is deeper", async () => {
  await using store = await start();
  const { zero } = store;
  await zero.ask(XS_WATCH, ["/a", "t", "1"]);
  zero.takeEvents();
  for (const path of ["/a", "/a/b", "/a/b/c"]) await zero.ask(XS_WRITE, [path, "1"]);
  await zero.ask(XS_READ, ["/"]);
  assert.deepEqual(zero.takeEvents(), ["/a t", "/a/b t"]);
});

test("removing tells watches of what was below, and those above only of the top", async () => {
  await using store = await start();
  const { zero } = store;
  await zero.ask(XS_WRITE, ["/a/b/c", "1"]);
  for (const path of ["/", "/a/b", "/a/b/c"]) await zero.ask(XS_WATCH, [path, path]);
  zero.takeEvents();
  await zero.ask(XS_RM, ["/a"]);
  await zero.ask(XS_READ, ["/"]);
  assert.deepEqual(zero.takeEvents(), ["/a/b/c /a/b/c", "/a/b /a/b", "/a /"]);
});

test("only who may read hears: also of removed nodes, and of permissions that were taken", async () => {
  await using store = await start();
  const { zero, one, heard } = store;
  await one.ask(XS_WATCH, ["/a", "t"]);
  await zero.ask(XS_MKDIR, ["/a/open"]);
  await zero.ask(XS_SET_PERMS, ["/a/open", "n0", "r1"]);
  await zero.ask(XS_WRITE, ["/a/closed", "1"]);
  assert.deepEqual(await heard(), ["/a t", "/a/open t"]);
  await zero.ask(XS_SET_PERMS, ["/a/open", "n0"]);
  assert.deepEqual(await heard(), ["/a/open t"]);
  await zero.ask(XS_WRITE, ["/a/open", "1"]);
  await zero.ask(XS_SET_PERMS, ["/a/open", "n0", "r1"]);
  await zero.ask(XS_RM, ["/a/open"]);
  await zero.ask(XS_RM, ["/a/closed"]);
  assert.deepEqual(await heard(), ["/a/open t", "/a/open t"]);
});

test("domains hear of domains that come and go only where they may", async () => {
  await using store = await start();
  const { daemon, zero, one, heard } = store;
  await one.ask(XS_WATCH, ["@releaseDomain", "t"]);
  one.takeEvents();
  daemon.introduce(5);
  daemon.release(5);
  assert.deepEqual(await heard(), []);
  assert.equal(await zero.ask(XS_SET_PERMS, ["@releaseDomain", "n0", "r1"]), "OK");
  await heard();
  daemon.introduce(5);
  daemon.release(5);
  assert.deepEqual(await heard(), ["@releaseDomain t"]);
});

test("a transaction's events come when it commits, and not at all when it does not", async () => {
  await using store = await start();
  const { zero } = store;
  await zero.ask(XS_WATCH, ["/a", "t"]);
  zero.takeEvents();
  for (const flag of ["F", "T"]) {
    const id = Number(await zero.ask(XS_TRANSACTION_START, [""]));
    await zero.ask(XS_WRITE, ["/a/x", "1"], id);
    await zero.ask(XS_WRITE, ["/a/gone", "1"], id);
    await zero.ask(XS_RM, ["/a/gone"], id);
    await zero.ask(XS_READ, ["/"]);
    zero.takeEvents();
    await zero.ask(XS_TRANSACTION_END, [flag], id);
    await zero.ask(XS_READ, ["/"]);
    assert.deepEqual(zero.takeEvents(), flag === "T" ? ["/a/x t"] : []);
  }
});
