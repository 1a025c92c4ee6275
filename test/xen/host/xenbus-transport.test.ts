import assert from "node:assert/strict";
import test from "node:test";
import { XenbusTransport } from "../../../src/xen/host/xenbus-transport.ts";
import { XenStoreClient, XenStoreDaemon } from "../../../src/xen/xenstore/index.ts";
import { DeviceDouble } from "./double.ts";

interface Kernel extends AsyncDisposable {
  readonly store: XenStoreClient;
}

function kernel(): Kernel {
  const ends = new AsyncDisposableStack();
  const devices = ends.use(new DeviceDouble());
  const daemon = ends.use(new XenStoreDaemon());
  const transport = new XenbusTransport(devices.of(0, daemon.connect(0)));
  const store = ends.use(new XenStoreClient(transport));
  return { store, [Symbol.asyncDispose]: () => ends.disposeAsync() };
}

test("nodes are read, written, listed and watched through the kernel", async () => {
  await using opened = kernel();
  const { store } = opened;
  const seen: string[] = [];
  await using _watch = await store.watch("/tool/a", (path) => seen.push(path));
  await store.transaction(async (operations) => {
    await operations.write("/tool/a/b", "2".repeat(3000));
    await operations.write("/tool/a/c", "3");
  });
  assert.equal((await store.read("/tool/a/b"))?.length, 3000);
  assert.deepEqual(await store.list("/tool/a"), ["b", "c"]);
  const many = Array.from({ length: 200 }, () => store.read("/tool/a/c"));
  assert.deepEqual(new Set(await Promise.all(many)), new Set(["3"]));
  assert.deepEqual(seen, ["/tool/a", "/tool/a/b", "/tool/a/c"]);
});

test("a request that the kernel has no room for is refused, and the others go on", async () => {
  await using opened = kernel();
  const { store } = opened;
  const path = "/tool/x";
  const room = 4096 - 16 - path.length - 1;
  await store.write(path, "x".repeat(room));
  await assert.rejects(store.write(path, "x".repeat(room + 1)), { code: "E2BIG" });
  assert.equal((await store.read(path))?.length, room);
});

test("a watch that begins or ends while other requests are unanswered keeps nobody waiting for ever", async () => {
  await using opened = kernel();
  const { store } = opened;
  await store.write("/tool/a", "1");
  const reads: Promise<string | undefined>[] = [];
  for (let round = 0; round < 20; round++) {
    reads.push(store.read("/tool/a"));
    const watching = store.watch("/tool/a", () => {});
    reads.push(store.read("/tool/a"));
    const watch = await watching;
    reads.push(store.read("/tool/a"));
    await watch[Symbol.asyncDispose]();
  }
  assert.deepEqual(new Set(await Promise.all(reads)), new Set(["1"]));
});
