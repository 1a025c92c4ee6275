/** What a toolstack writes for a vbd, and takes away. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { createDomainNodes, createVbd, removeVbd } from "../../src/xen/toolstack.ts";
import { errorPath } from "../../src/xen/xenbus.ts";
import { XenStoreClient, XenStoreDaemon } from "../../src/xen/xenstore/index.ts";

const vbd = { frontendDomid: 7, backendDomid: 0, readOnly: false, params: "" };

test("a vbd that is removed leaves nothing, also of what went wrong with it, and no other loses anything", async () => {
  await using daemon = new XenStoreDaemon();
  await using store = new XenStoreClient(daemon.connect(0));
  for (const domid of [0, 7]) await createDomainNodes(store, domid, `domain${domid}`);
  const first = await createVbd(store, { ...vbd, vdev: 51712 });
  const second = await createVbd(store, { ...vbd, vdev: 51728 });
  const errors = [first, second].flatMap(({ frontend, backend }) => [
    errorPath(frontend),
    errorPath(backend),
  ]);
  assert.deepEqual(errors.slice(0, 2), [
    "/local/domain/7/error/device/vbd/51712",
    "/local/domain/0/error/backend/vbd/7/51712",
  ]);
  for (const path of errors) await store.write(`${path}/error`, "EIO it broke");
  await removeVbd(store, first);
  for (const path of [...Object.values(first), ...errors.slice(0, 2)]) {
    assert.equal(await store.list(path), undefined, path);
  }
  for (const path of [...Object.values(second), ...errors.slice(2)]) {
    assert.notEqual(await store.list(path), undefined, path);
  }
  await removeVbd(store, second);
  assert.deepEqual(await store.list("/local/domain/0/backend/vbd"), []);
  assert.deepEqual(await store.list("/local/domain/0/error/backend/vbd"), []);
});
