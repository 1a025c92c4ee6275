/** Everything that a domain elsewhere does with one of this thread, and back to nothing at the end. */
import assert from "node:assert/strict";
import { EmbeddedMachine } from "../../../src/xen/embedded/index.ts";
import { Far } from "../../support/far-domain.ts";

export const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

/** Waits for what must become true; the test's own limit ends what never does. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await soon();
}

const FAR = 7;
const ROUNDS = 200;

export async function exchange(where: "worker" | "process"): Promise<void> {
  await using machine = await EmbeddedMachine.create();
  const here = await machine.createDomain(0, { shared: where === "process" });
  await using far = await Far.start(await machine.domainTicket(FAR, where));
  const pages = here.grants.allocate(1)!;
  assert.ok(pages.grant(0, FAR, false));
  const channel = here.events.allocateUnbound(FAR);
  const [status, handle] = (await far.call("map", 0, pages.references[0]!, 0)) as number[];
  assert.equal(status, 0);
  await far.call("echo", 0, channel.port);

  const { promise, resolve } = Promise.withResolvers<void>();
  let rounds = 0;
  channel.onevent = () => {
    // A channel rings once too often at most when it is bound.
    if (pages.region.bytes[pages.start] === 0) return;
    if (++rounds === ROUNDS) resolve();
    else channel.notify();
  };
  await soon();
  channel.notify();
  await promise;
  assert.equal(pages.region.bytes[pages.start], ROUNDS);

  // The other way round: their page and port, ours to map and bind.
  const reference = (await far.call("share", 0)) as number;
  const theirs = here.grants.mapContiguous(FAR, [reference], false);
  assert.ok(typeof theirs === "object");
  theirs.bytes[9] = 99;
  assert.equal(await far.call("peek", 1, 9), 99);
  const bound = here.events.bindInterdomain(FAR, (await far.call("offer", 0)) as number);
  bound.notify();
  await until(async () => (await far.call("events")) === 1);

  await here.store.mkdir("/local/domain/7");
  await here.store.setPermissions("/local/domain/7", [{ domid: FAR, access: "none" }]);
  await far.call("write", "/local/domain/7/data", "from afar");
  assert.equal(await here.store.read("/local/domain/7/data"), "from afar");

  assert.equal(pages.endAccess(0), false);
  assert.equal(await far.call("unmap", handle!), 0);
  assert.equal(pages.endAccess(0), true);
  theirs[Symbol.dispose]();
  assert.equal(await far.call("mapped"), 0);
  await far.call("close");
  await far.ended();
  await machine.destroyDomain(FAR);
}
