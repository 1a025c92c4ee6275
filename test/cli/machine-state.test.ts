/** `vbdkit machine --state`: what of a machine is there again in the next one. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { statSync } from "node:fs";
import { test } from "node:test";
import { XenStoreClient } from "../../src/xen/xenstore/client.ts";
import { finished, serve, start, temporaryFolder } from "../support/vbdkit.ts";

test("what was written into the xenstore outlives a machine that is killed, and its domains do not", async () => {
  await using folder = await temporaryFolder();
  const words = (name: string) => ["--state", folder.file("state"), "--machine", folder.file(name)];
  {
    await using first = await serve([...words("first"), "web", "database"], {}, "machine");
    await using store = await XenStoreClient.connect(first.info.xenstoreSocket);
    assert.equal(await store.read("/local/domain/2/name"), "database");
    await store.write("/mine/key", "value");
    const { code, stderr } = await finished(start(["machine", ...words("second")]));
    assert.deepEqual([code, stderr.split("\n").length], [1, 2], stderr);
    assert.match(stderr, /state is in use: another daemon/);
    const closed = once(first.child, "close");
    first.child.kill("SIGKILL");
    await closed;
  }
  await using next = await serve([...words("next"), "other"], {}, "machine");
  await using store = await XenStoreClient.connect(next.info.xenstoreSocket);
  assert.equal(await store.read("/mine/key"), "value");
  assert.deepEqual(await store.list("/local/domain"), ["0", "1"]);
  assert.equal(await store.read("/local/domain/1/name"), "other");
  assert.equal((await store.list("/vm"))?.length, 1);
  assert.equal(statSync(folder.file("state")).mode & 0o777, 0o600);
});
