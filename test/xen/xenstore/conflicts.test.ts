/** Guests whose changes meet the transactions of others: they are held back, and nobody else. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import {
  XS_READ,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { createDomainNodes, recreateVbd, removeVbd } from "../../../src/xen/toolstack.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { ConflictCredit } from "../../../src/xen/xenstore/conflict-credit.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { RawClient } from "./raw-client.ts";

test("some conflicts are free, more cost twice as much each, up to a second, and time forgives", () => {
  const credit = new ConflictCredit();
  const costs = Array.from({ length: 14 }, () => {
    credit.charge(0);
    return credit.heldFor(0);
  });
  assert.deepEqual(costs, [0, 0, 0, 0, 0, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
  assert.equal(credit.heldFor(400), 600);
  credit.charge(60_000);
  assert.equal(credit.heldFor(60_000), 0);
});

async function start() {
  const clock = new ManualClock();
  const daemon = new XenStoreDaemon({ clock });
  const zero = new RawClient(daemon.connect(0));
  const guest = new RawClient(daemon.connect(1));
  const store = new XenStoreClient(daemon.connect(0));
  for (const domid of [1, 2]) await createDomainNodes(store, domid, `guest${domid}`);
  /** A transaction of `victim` that `culprit` makes fail by a write to `path`. */
  const conflict = async (victim: RawClient, culprit: RawClient, path: string): Promise<string> => {
    const id = Number(await victim.ask(XS_TRANSACTION_START, [""]));
    await victim.ask(XS_READ, [path], id);
    await culprit.ask(XS_WRITE, [path]);
    return victim.ask(XS_TRANSACTION_END, ["T"], id);
  };
  return {
    clock,
    daemon,
    zero,
    guest,
    store,
    conflict,
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}

test("a guest that makes transactions fail is not heard for a while; other guests are", async () => {
  await using world = await start();
  const { clock, daemon, zero, guest, conflict } = world;
  const other = new RawClient(daemon.connect(2));
  for (let i = 0; i < 6; i++)
    assert.equal(await conflict(zero, guest, "/local/domain/1/x"), "EAGAIN");
  let answered = false;
  const asked = guest.ask(XS_READ, ["name"]).then((answer) => {
    answered = true;
    return answer;
  });
  assert.equal(await other.ask(XS_READ, ["name"]), "guest2");
  for (let i = 0; i < 5; i++) await nextTurn();
  clock.pass(19);
  await nextTurn();
  assert.ok(!answered);
  clock.pass(1);
  assert.equal(await asked, "guest1");
});

test("one that removes nodes, or that commits, is found too; nobody holds back domain 0 or itself", async () => {
  await using world = await start();
  const { clock, daemon, zero, guest, store, conflict } = world;
  const again = new RawClient(daemon.connect(1));
  for (let i = 0; i < 20; i++) {
    assert.equal(await conflict(again, guest, "/local/domain/1/x"), "EAGAIN");
    assert.equal(await conflict(guest, zero, "/local/domain/1/x"), "EAGAIN");
  }
  assert.equal(await zero.ask(XS_READ, ["/local/domain/1/name"]), "guest1");
  assert.equal(await guest.ask(XS_READ, ["name"]), "guest1");
  await using mine = new XenStoreClient(daemon.connect(1));
  for (let i = 0; i < 6; i++) {
    await store.write("/local/domain/1/device/x", "");
    const id = Number(await zero.ask(XS_TRANSACTION_START, [""]));
    await zero.ask(XS_READ, ["/local/domain/1/device/x"], id);
    if (i % 2 === 0) await mine.remove("/local/domain/1/device/x");
    else await mine.transaction((operations) => operations.write("/local/domain/1/device/x", "1"));
    assert.equal(await zero.ask(XS_TRANSACTION_END, ["T"], id), "EAGAIN");
  }
  let answered = false;
  const asked = mine.read("/local/domain/1/name").then(() => {
    answered = true;
  });
  for (let i = 0; i < 5; i++) await nextTurn();
  assert.ok(!answered);
  clock.pass(1000);
  await asked;
});

test("a toolstack makes and removes a vbd while the guest writes into it without pause", async () => {
  await using daemon = new XenStoreDaemon();
  await using store = new XenStoreClient(daemon.connect(0));
  await using guest = new XenStoreClient(daemon.connect(1));
  for (const domid of [0, 1]) await createDomainNodes(store, domid, `domain${domid}`);
  const vbd = { frontendDomid: 1, backendDomid: 0, vdev: 51712, readOnly: false, params: "x" };
  // The clock of those that are held back keeps no process alive.
  const alive = setInterval(() => {}, 1000);
  let writes = 0;
  let over = false;
  const flood = async (path: string): Promise<void> => {
    while (!over) await guest.write(path, String(writes++)).catch(() => {});
  };
  const floods = [flood("/local/domain/1/device/vbd"), flood("/local/domain/1/device/vbd/51712/x")];
  const paths = await recreateVbd(store, vbd);
  assert.equal(await store.read(`${paths.backend}/state`), "1");
  await removeVbd(store, paths);
  assert.equal(await store.read(`${paths.backend}/state`), undefined);
  over = true;
  await Promise.all(floods);
  clearInterval(alive);
  assert.ok(writes > 5);
});
