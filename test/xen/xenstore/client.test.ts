import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { MessageChannel } from "node:worker_threads";
import { encodeXenStoreMessage, XS_READ, XS_WATCH_EVENT } from "../../../src/wire/xenstore.ts";
import type { XenError } from "../../../src/xen/domain.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { localTransportPair } from "../../../src/xen/xenstore/local-transport.ts";
import { xenStoreSocketPath } from "../../../src/xen/xenstore/socket-path.ts";

const code = (expected: string) => (error: XenError) => error.code === expected;

/** Ends at the end of the test: the client, then the daemon. */
async function start() {
  const daemon = new XenStoreDaemon();
  const store = new XenStoreClient(daemon.connect(0));
  return {
    daemon,
    store,
    [Symbol.asyncDispose]: async () => {
      await store[Symbol.asyncDispose]();
      await daemon[Symbol.asyncDispose]();
    },
  };
}

test("a missing node is undefined, and text is UTF-8 or latin-1", async () => {
  await using all = await start();
  const { store } = all;
  assert.equal(await store.read("/a"), undefined);
  assert.equal(await store.list("/a"), undefined);
  assert.equal(await store.getPermissions("/a"), undefined);
  await store.remove("/a/b/c");
  await store.write("/a", "grün");
  assert.equal(await store.read("/a"), "grün");
  await store.write("/a", Uint8Array.of(0xe4, 0));
  assert.equal(await store.read("/a"), "\xe4\0");
  assert.deepEqual(await store.readBytes("/a"), Uint8Array.of(0xe4, 0));
});

test("permissions go both ways", async () => {
  await using all = await start();
  const { store } = all;
  await store.mkdir("/a");
  const permissions = [
    { domid: 1, access: "none" },
    { domid: 2, access: "read" },
    { domid: 3, access: "both" },
  ] as const;
  await store.setPermissions("/a", permissions);
  assert.deepEqual(await store.getPermissions("/a"), permissions);
  await assert.rejects(store.setPermissions("/a", []), code("EINVAL"));
});

test("errors have the daemon's code and name the path", async () => {
  await using all = await start();
  const one = new XenStoreClient(all.daemon.connect(1));
  await assert.rejects(one.read("/a"), { code: "EACCES", message: "/a: permission denied" });
  await assert.rejects(all.store.write("/a//b", ""), code("EINVAL"));
  await assert.rejects(all.store.write("/a\0b", ""), code("EINVAL"));
  await assert.rejects(all.store.write("/a", "x".repeat(4096)), code("E2BIG"));
});

test("a directory of any size is listed whole, also while it changes", async () => {
  await using all = await start();
  const { store } = all;
  const names = Array.from({ length: 3000 }, (_, i) => `some-name-${i}`);
  await Promise.all(names.map((name) => store.mkdir(`/big/${name}`)));
  assert.deepEqual(await store.list("/big"), names);
  const listing = store.list("/big");
  await nextTurn();
  await store.mkdir("/big/late");
  const found = await listing;
  assert.deepEqual(found?.slice(0, names.length), names);
});

test("transactions that meet run again until they commit", async () => {
  await using all = await start();
  const { store } = all;
  await store.write("/count", "0");
  let runs = 0;
  const add = () =>
    store.transaction(async (operations) => {
      runs++;
      const count = Number(await operations.read("/count"));
      await operations.write("/count", String(count + 1));
    });
  await Promise.all(Array.from({ length: 8 }, add));
  assert.equal(await store.read("/count"), "8");
  assert.ok(runs > 8);
});

test("a transaction whose body throws changes nothing and gives its error", async () => {
  await using all = await start();
  const { store } = all;
  const failure = new Error("of the body");
  const body = async (operations: typeof store): Promise<never> => {
    await operations.write("/a", "1");
    throw failure;
  };
  await assert.rejects(
    store.transaction((operations) => body(operations as typeof store)),
    (error) => error === failure,
  );
  assert.equal(await store.read("/a"), undefined);
});

test("a transaction that meets somebody each time gives up with EAGAIN", async () => {
  await using all = await start();
  const { store } = all;
  let runs = 0;
  const hopeless = store.transaction(async (operations) => {
    await operations.read("/a");
    await store.write("/a", String(runs++));
  });
  await assert.rejects(hopeless, code("EAGAIN"));
  assert.equal(runs, 64);
});

test("a watch calls back at once and for each change, and no more once it is disposed", async () => {
  await using all = await start();
  const { store } = all;
  const paths: string[] = [];
  const watch = await store.watch("/a", (path) => paths.push(path));
  await store.write("/a/b", "1");
  await store.read("/a");
  assert.deepEqual(paths, ["/a", "/a/b"]);
  await watch[Symbol.asyncDispose]();
  await watch[Symbol.asyncDispose]();
  await store.write("/a/b", "2");
  assert.deepEqual(paths, ["/a", "/a/b"]);
  await assert.rejects(
    store.watch("//", () => {}),
    code("EINVAL"),
  );
});

test("changes of one path that were not handed on yet are one call", async () => {
  await using all = await start();
  const { store } = all;
  let calls = 0;
  await store.watch("/a", () => calls++);
  await nextTurn();
  calls = 0;
  await Promise.all(Array.from({ length: 50 }, (_, i) => store.write("/a", String(i))));
  await nextTurn();
  assert.ok(calls >= 1 && calls < 5, `${calls} calls`);
});

test("a flood of different paths becomes a call for the watched one", async () => {
  const [ours, theirs] = localTransportPair();
  await using store = new XenStoreClient(theirs);
  const paths: string[] = [];
  void store.watch("/a", (path) => paths.push(path)).catch(() => {});
  const events = Array.from({ length: 1500 }, (_, i) =>
    encodeXenStoreMessage({
      type: XS_WATCH_EVENT,
      requestId: 0,
      transactionId: 0,
      payload: Buffer.from(`/a/${i}\x001\0`),
    }),
  );
  ours.send(Buffer.concat(events));
  await nextTurn();
  await nextTurn();
  assert.ok(paths.includes("/a"));
  assert.ok(paths.length <= 1024, `${paths.length} calls`);
});

test("when the connection ends, whatever waits rejects, and whatever comes later too", async () => {
  await using all = await start();
  const { daemon, store } = all;
  const pending = store.read("/a");
  const rejected = assert.rejects(pending, code("ECONNRESET"));
  await daemon[Symbol.asyncDispose]();
  await rejected;
  await assert.rejects(store.read("/a"), code("EPIPE"));
  assert.equal((await store.closed)?.code, "ECONNRESET");
});

test("disposal rejects what waits, and the daemon forgets the client", async () => {
  await using daemon = new XenStoreDaemon();
  const store = new XenStoreClient(daemon.connect(0));
  const rejected = assert.rejects(store.read("/a"), code("EPIPE"));
  await store[Symbol.asyncDispose]();
  await store[Symbol.asyncDispose]();
  await rejected;
  assert.equal(await store.closed, undefined);
  await nextTurn();
  await nextTurn();
  assert.equal(daemon.clients, 0);
});

test("a daemon that sends rubbish is left, with an error for whoever waits", async () => {
  const [ours, theirs] = localTransportPair();
  const store = new XenStoreClient(theirs);
  const rejected = assert.rejects(store.read("/a"), code("EIO"));
  ours.send(new Uint8Array(64).fill(0xff));
  await rejected;
});

test("an answer to another request is not taken for ours", async () => {
  const [ours, theirs] = localTransportPair();
  const store = new XenStoreClient(theirs);
  const rejected = assert.rejects(store.list("/a"), code("EIO"));
  const payload = Buffer.from("x");
  ours.send(encodeXenStoreMessage({ type: XS_READ, requestId: 99, transactionId: 0, payload }));
  ours.send(encodeXenStoreMessage({ type: XS_READ, requestId: 1, transactionId: 0, payload }));
  await rejected;
});

test("a client speaks over a MessagePort as over any transport", async () => {
  await using daemon = new XenStoreDaemon();
  const { port1, port2 } = new MessageChannel();
  daemon.accept(port1, 3);
  await using zero = new XenStoreClient(daemon.connect(0));
  await zero.mkdir("/local/domain/3");
  await zero.setPermissions("/local/domain/3", [{ domid: 3, access: "none" }]);
  await using store = new XenStoreClient(port2);
  const write = (i: number) => store.write(`d${i % 9}/${i}`, "x".repeat(1000));
  await Promise.all(Array.from({ length: 900 }, (_, i) => write(i)));
  assert.equal((await store.list("/local/domain/3/d8"))?.length, 100);
});

test("a port that sends what are no bytes is cut off", async () => {
  for (const rubbish of ["text", 5, null, new Uint8Array(new SharedArrayBuffer(16))]) {
    const lost = Promise.withResolvers<Error>();
    await using daemon = new XenStoreDaemon({ onClientLost: (_, reason) => lost.resolve(reason) });
    const { port1, port2 } = new MessageChannel();
    daemon.accept(port1, 3);
    port2.postMessage(rubbish);
    assert.equal(((await lost.promise) as XenError).code, "EBADMSG");
    port2.close();
  }
});

test("no daemon at a path is an error that names it", async () => {
  await assert.rejects(XenStoreClient.connect("/nonexistent/socket"), {
    code: "ENOENT",
    message: /no xenstore answers at \/nonexistent\/socket/,
  });
});

test("the system's socket is where the tools look for it", () => {
  assert.equal(xenStoreSocketPath({}), "/run/xenstored/socket");
  assert.equal(xenStoreSocketPath({ XENSTORED_RUNDIR: "/x" }), "/x/socket");
  assert.equal(xenStoreSocketPath({ XENSTORED_RUNDIR: "/x", XENSTORED_PATH: "/y" }), "/y");
});
