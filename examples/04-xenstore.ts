/** Watching two drivers shake hands: every node that changes in the xenstore while a disk is attached. */
import { Machine, parseDisk, XenStoreClient } from "vbdkit";

await using machine = await Machine.start();
await using store = await XenStoreClient.connect(machine.xenstoreSocket);
const changed = new Set<string>();
await using _watch = await store.watch("/local/domain", (path) => changed.add(path));
await using _disk = await machine.attach(parseDisk(["memory", "1M"]), { vdev: "xvda" });

for (const path of [...changed].sort()) {
  const value = await store.read(path);
  if (value !== undefined && value !== "") console.log(`${path} = "${value}"`);
}
