/** `vbdkit attach --machine xen` where there is no Xen, or half of one: a xenstore alone. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { attachRequestOf } from "../../src/cli/attach-spec.ts";
import type { DiskOptions } from "../../src/cli/options.ts";
import { StopSignal } from "../../src/cli/signals.ts";
import { attachToXen } from "../../src/cli/xen-attach.ts";
import { parseXlDisk } from "../../src/cli/xl-disk.ts";
import { XenStoreClient, XenStoreDaemon } from "../../src/xen/xenstore/index.ts";
import { cleanEnvironment, finished, start, temporaryFolder, vbdkit } from "../support/vbdkit.ts";

const attach = ["attach", "--machine", "xen"];

describe("attach --machine xen", { concurrency: 2 }, () => {
  test("refuses what is the guest's own to decide", async () => {
    using stop = new StopSignal();
    const options: DiskOptions = {
      engine: "auto",
      link: "thread",
      persistent: true,
      discard: true,
    };
    for (const [more, message] of [
      [{ link: "worker" }, /^--link: on Xen the backend is this process$/],
      [{ frontend: ["trusted=0"] }, /^--frontend: the frontend is the guest's own/],
      [{ protocol: "native" }, /^--protocol: the frontend is the guest's own/],
    ] as const) {
      const given = { ...options, ...more } as DiskOptions;
      const request = attachRequestOf("web", parseXlDisk(["vdev=xvda,target=memory 1M"]), given);
      const refused = { name: "UsageError", message };
      await assert.rejects(attachToXen(request, given, stop), refused);
    }
  });

  test("says where it looked for a xenstore", async () => {
    const env = cleanEnvironment({ XENSTORED_PATH: "/nowhere/xenstored.sock" });
    const outcome = await vbdkit([...attach, "web", "vdev=xvda,target=memory 1M"], { env });
    assert.equal(outcome.code, 1);
    assert.match(outcome.stderr, /^vbdkit: no xenstore answers at \/nowhere\/xenstored.sock/);
  });

  test("names the domains there are, shows the disk it has made, and takes it away", async () => {
    await using folder = await temporaryFolder();
    await using daemon = new XenStoreDaemon();
    const socket = folder.file("xenstored.sock");
    await daemon.listen(socket);
    const env = cleanEnvironment({ XENSTORED_PATH: socket });
    await using store = new XenStoreClient(daemon.connect(0));
    for (const [domid, name] of Object.entries({ 0: "Domain-0", 3: "web" })) {
      await store.write(`/local/domain/${domid}/name`, name);
      await store.write(`/local/domain/${domid}/domid`, domid);
    }
    const disk = "vdev=xvdb,access=r,target=memory 1M";
    const wrong = await vbdkit([...attach, "wep", disk], { env });
    assert.equal(wrong.code, 1);
    assert.match(wrong.stderr, /there is no domain "wep".*"?web"?/);
    const child = start([...attach, "--json", "web", disk], { env });
    const outcome = finished(child);
    const text = await new Promise<string>((resolve) => {
      let printed = "";
      child.stdout?.on("data", (chunk: Buffer) => {
        printed += chunk;
        if (printed.trimEnd().endsWith("}")) resolve(printed);
      });
      child.once("close", () => resolve(printed));
    });
    const backendPath = "/local/domain/0/backend/vbd3/3/51728";
    assert.deepEqual(JSON.parse(text), {
      ...{ domain: "web", domid: 3, vdev: "xvdb", size: 1 << 20, access: "r" },
      ...{ frontendPath: "/local/domain/3/device/vbd/51728", backendPath },
    });
    assert.equal(await store.read(`${backendPath}/mode`), "r");
    const again = await vbdkit([...attach, "3", disk], { env });
    assert.match(again.stderr, /51728 is there already; choose another vdev/);
    child.kill("SIGTERM");
    const { code, stderr } = await outcome;
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(await store.list("/local/domain/0/backend/vbd3/3"), undefined);
  });
});
