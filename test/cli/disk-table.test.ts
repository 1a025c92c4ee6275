/** What the table of a machine's disks says of a guest that crashed, which no command can bring about. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { AttachRequest } from "../../src/cli/attach-request.ts";
import { DiskTable } from "../../src/cli/disk-table.ts";
import { Machine, NbdServer, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";

test("a guest that crashed takes no disks, shows those it has as dead, and lets them be cleared away", async () => {
  const reactor = new Reactor();
  await using machine = await Machine.start({ reactor });
  await using nbd = new NbdServer([], { reactor });
  await using table = new DiskTable(machine, nbd);
  const guest = await machine.createGuest({ name: "web" });
  const request = (vdev: string): AttachRequest => ({
    ...{ domain: "web", vdev, text: "memory 1M", spec: parseDisk(["memory", "1M"], []) },
    ...{ readOnly: false, cdrom: false, kind: "vbd", exportName: null },
    ...{ link: "thread", engine: "auto", backend: {}, frontend: {} },
  });
  const { signal } = new AbortController();
  const entry = await table.attach(request("xvda"), signal);
  await guest.crash();
  assert.match(entry.error!, /web crashed/);
  const refusal = /^Error: web does not run \(crash\); vbdkit destroy ends it$/;
  await assert.rejects(table.attach(request("xvdb"), signal), refusal);
  const grow = { size: 2 ** 20, relative: true, shrink: false };
  await assert.rejects(table.resize({ domain: "web", vdev: "xvda" }, grow), refusal);
  const notes: string[] = [];
  await table.detach({ domain: "web", vdev: "xvda" }, false, (note) => notes.push(note));
  assert.deepEqual([notes, [...table]], [[], []]);
});
