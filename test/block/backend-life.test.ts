/** Frontends that come, go, come back, or die at any step, and the nodes that tell of it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore } from "../../src/store/block-store.ts";
import { openStore } from "../../src/store/registry.ts";
import { shows } from "../../src/testing/index.ts";
import { BLKIF_OP_READ, BLKIF_RSP_OKAY } from "../../src/wire/blkif.ts";
import { takeOffline } from "../../src/xen/toolstack.ts";
import { type BackendWorld, backendWorld } from "./backend-world.ts";
import { ScriptedFrontend } from "./scripted-frontend.ts";

/** Whether the device has gone for good, a moment from now. */
async function hasEnded({ backend }: BackendWorld): Promise<boolean> {
  return await Promise.race([backend.ended.then(() => true), sleep(100, false)]);
}

test(
  "while online is 1 the device stays at Closed, and waits again when its frontend begins anew",
  shows(["3.4.closed", "3.4.reconnect"], async () => {
    await using at = await backendWorld();
    const { frontend } = at;
    await frontend.connect(0);
    await frontend.close();
    assert.equal(await hasEnded(at), false);
    assert.equal(await frontend.state("backend"), 6);
    await frontend.become(1);
    await frontend.backendIs(2);
  }),
);

test(
  "once online is 0 the device ends with its frontend",
  shows(["3.4.closed"], async () => {
    await using at = await backendWorld();
    const { frontend } = at;
    await frontend.connect(0);
    await takeOffline(at.dom0.store, at.paths);
    assert.equal(await hasEnded(at), false, "not before the frontend has closed");
    await frontend.close();
    assert.equal(await hasEnded(at), true);
  }),
);

for (const state of [1, 3] as const) {
  test(`a frontend that goes back to ${state} while connected is served on the ring it had, as by Linux`, async () => {
    await using at = await backendWorld();
    const { frontend } = at;
    await frontend.connect(0);
    await at.guest.store.write(`${at.paths.frontend}/ring-ref`, "30000");
    await frontend.become(state);
    await sleep(20);
    assert.equal(await frontend.state("backend"), 4);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  });
}

test("a frontend that begins anew while the backend is closing finds a backend that waits for it", async () => {
  await using at = await backendWorld();
  await at.frontend.connect(0);
  await at.frontend.become(5);
  await at.frontend.backendIs(5);
  await at.frontend.become(1);
  await at.frontend.backendIs(2);
  assert.equal(at.dom0.grants.counters.mapped, 0);
  await using again = new ScriptedFrontend(at.guest, at.paths);
  await again.connect(0);
  assert.equal(await again.status(again.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  await again.close();
});

/** A disk that opens only when it is told to. */
class SlowDisk {
  readonly #asked = Promise.withResolvers<void>();
  readonly #told = Promise.withResolvers<void>();

  /** The backend wants it. */
  get asked(): Promise<void> {
    return this.#asked.promise;
  }

  open(): void {
    this.#told.resolve();
  }

  readonly opener = async (reactor: Reactor): Promise<BlockStore> => {
    this.#asked.resolve();
    await this.#told.promise;
    return await openStore(
      { driver: "memory", parameters: { size: "1M" }, filters: [] },
      { reactor },
    );
  };
}

test("a frontend that closes and begins anew while it is connected is not left waiting for InitWait", async () => {
  const disk = new SlowDisk();
  await using at = await backendWorld({ opener: disk.opener });
  const { frontend } = at;
  await frontend.become(6);
  await frontend.backendIs(6);
  await frontend.offer(0);
  await disk.asked;
  // The Closed that it sees is that of before.
  await frontend.become(6);
  await frontend.backendIs(6);
  await frontend.become(1);
  disk.open();
  await using again = new ScriptedFrontend(at.guest, at.paths);
  await again.connect(0);
  assert.equal(await again.status(again.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  await again.close();
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

test("a frontend whose successor makes another offer while the disk is opened is forgotten", async () => {
  const disk = new SlowDisk();
  await using at = await backendWorld({ opener: disk.opener });
  await at.frontend.backendIs(2);
  await at.frontend.offer(0);
  await disk.asked;
  await at.frontend.become(1);
  await using again = new ScriptedFrontend(at.guest, at.paths);
  await again.backendIs(2);
  await again.offer(0);
  disk.open();
  await again.backendIs(4);
  assert.equal(await again.status(again.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
});

test("a frontend that thinks better of Closing gets the ring it shows then", async () => {
  await using at = await backendWorld();
  await at.frontend.connect(0);
  await at.frontend.become(5);
  await at.frontend.backendIs(5);
  const again = new ScriptedFrontend(at.guest, at.paths);
  await again.offer(0);
  await again.backendIs(4);
  assert.equal(await again.status(again.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  await again.close();
  assert.equal(at.dom0.grants.counters.mapped, 0);
  await again[Symbol.asyncDispose]();
});

test("a refused frontend may try again, and its error is gone when it has connected", async () => {
  await using at = await backendWorld();
  const { frontend } = at;
  await frontend.backendIs(2);
  await frontend.offer(0, { keys: { "ring-ref": "30000" } });
  await frontend.backendIs(5);
  assert.match((await frontend.backendKey("error")) ?? "", /EACCES/);
  const elsewhere = at.paths.backend.replace("/local/domain/0/", "/local/domain/0/error/");
  assert.match((await at.dom0.store.read(`${elsewhere}/error`)) ?? "", /EACCES/);
  await frontend.become(6);
  await frontend.backendIs(6);
  await frontend.become(1);
  const again = new ScriptedFrontend(at.guest, at.paths);
  await again.connect(0);
  assert.equal(await again.backendKey("error"), undefined);
  assert.equal(await again.backendKey("hotplug-status"), "connected");
  await again[Symbol.asyncDispose]();
});

/** How far the frontend has come when its domain dies. */
const steps: Record<string, (frontend: ScriptedFrontend) => Promise<void>> = {
  "before it did anything": async (frontend) => frontend.backendIs(2),
  "while its keys are looked at": async (frontend) => {
    await frontend.backendIs(2);
    await frontend.offer(0);
  },
  "once connected": (frontend) => frontend.connect(0, { persistent: true, queues: 2 }),
  "with requests in flight": async (frontend) => {
    await frontend.connect(0, { persistent: true });
    const reads = [0, 1, 2].map((page) => frontend.transfer(BLKIF_OP_READ, 0, 1, page));
    frontend.send(...reads);
    await sleep(5);
  },
  "while closing": async (frontend) => {
    await frontend.connect(0);
    await frontend.become(5);
  },
};
for (const [when, step] of Object.entries(steps)) {
  test(
    `the frontend's domain dies ${when}: all is given back, and the device ends`,
    shows(["4.6.7"], async () => {
      await using at = await backendWorld({ delay: "20ms" });
      const { frontend, dom0, guest } = at;
      await step(frontend);
      await frontend[Symbol.asyncDispose]();
      await guest[Symbol.asyncDispose]();
      await dom0.store.remove(at.paths.frontend);
      await at.backend.ended;
      assert.equal(await dom0.store.read(`${at.paths.backend}/state`), "6");
      assert.equal(dom0.grants.counters.mapped, 0);
    }),
  );
}

test(
  "a frontend that goes back and forth as fast as it can ends where it ends",
  shows(["3.4.reconfiguring"], async () => {
    await using at = await backendWorld();
    const { frontend } = at;
    await frontend.connect(0, { persistent: true });
    for (let round = 0; round < 10; round++) {
      await Promise.all([5, 6, 1, 3, 4, 5, 6].map((state) => frontend.become(state)));
    }
    await frontend.become(6);
    await frontend.backendIs(6);
    await sleep(20);
    assert.equal(await frontend.state("backend"), 6);
    assert.equal(at.dom0.grants.counters.mapped, 0);
    assert.equal(at.backend.counters, undefined);
  }),
);

test("a size that changes while the frontend closes does not bring Connected back", async () => {
  await using at = await backendWorld();
  const { frontend } = at;
  await frontend.connect(0);
  for (let round = 1; round <= 10; round++) {
    await Promise.all([
      at.disk.store.resize((1 + round) * 2 ** 20).catch(() => {}),
      frontend.become(5),
    ]);
    await frontend.backendIs(5);
    await sleep(5);
    assert.equal(await frontend.state("backend"), 5);
    await frontend.become(3);
    await frontend.backendIs(4);
  }
});

test("a disk that is opened by need is open while a frontend is connected, and not before or after", async () => {
  const steps: string[] = [];
  await using at = await backendWorld({
    opener: async (reactor) => {
      steps.push("opened");
      const spec = { driver: "memory", parameters: { size: "1M" }, filters: [] };
      const store = await openStore(spec, { reactor });
      const dispose = store[Symbol.asyncDispose].bind(store);
      return Object.assign(store, {
        [Symbol.asyncDispose]: async () => {
          steps.push("closed");
          await dispose();
        },
      });
    },
  });
  await at.frontend.backendIs(2);
  assert.deepEqual(steps, []);
  await at.frontend.connect(0);
  assert.deepEqual(steps, ["opened"]);
  assert.equal(await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  await at.frontend.close();
  assert.deepEqual(steps, ["opened", "closed"]);
});

test("a disk that cannot be opened by need is what the frontend is told", async () => {
  await using at = await backendWorld({
    opener: () => Promise.reject(new Error("a.img is locked by another")),
  });
  await at.frontend.backendIs(2);
  await at.frontend.offer(0);
  await at.frontend.backendIs(5);
  assert.match((await at.frontend.backendKey("error")) ?? "", /a\.img is locked by another/);
});
