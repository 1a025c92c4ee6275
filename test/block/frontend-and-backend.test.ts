/** Both of our ends together: several rings, both units of sectors, resuming, and a backend that is begun anew. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type BackendLimits,
  BlockBackend,
  BlockFrontend,
  type BlockFrontendOptions,
} from "../../src/block/index.ts";
import { openStore, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { shows } from "../../src/testing/index.ts";
import { systemClock } from "../../src/util/clock.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd } from "../../src/xen/toolstack.ts";

interface Pair extends AsyncDisposable {
  readonly frontend: BlockFrontend;
  readonly disk: Disk;
  readonly guest: Domain;
  /** Ends the backend and begins another on the same bytes. */
  restart(): Promise<void>;
}

/** A store that outlives its backends. */
function lasting(store: BlockStore): BlockStore {
  return new Proxy(store, {
    get(target, name) {
      if (name === Symbol.asyncDispose) return async () => {};
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

async function pair(
  backendLimits: Partial<BackendLimits>,
  options: Partial<BlockFrontendOptions> = {},
): Promise<Pair> {
  const ends = new AsyncDisposableStack();
  const reactor = new Reactor();
  const machine = ends.use(await EmbeddedMachine.create({ reactor, memoryPages: 4096 }));
  const dom0 = await machine.createDomain(0);
  const guest = await machine.createDomain(1);
  await createDomainNodes(dom0.store, 0, "Domain-0");
  await createDomainNodes(dom0.store, 1, "guest");
  const vbd = { frontendDomid: 1, backendDomid: 0, vdev: 51712, readOnly: false, params: "" };
  const paths = await createVbd(dom0.store, vbd);
  const store = ends.use(
    await openStore(parseDisk(["memory", "4M"], []), { reactor, readOnly: false, engine: "auto" }),
  );
  const open = () =>
    BlockBackend.open(dom0, paths.backend, lasting(store), { limits: backendLimits });
  let backend = await open();
  ends.defer(() => backend[Symbol.asyncDispose]());
  const frontend = ends.use(
    await BlockFrontend.connect(guest, paths.frontend, { clock: systemClock, ...options }),
  );
  return {
    frontend,
    guest,
    disk: new Disk(frontend, reactor),
    async restart() {
      await backend[Symbol.asyncDispose]();
      backend = await open();
    },
    async [Symbol.asyncDispose]() {
      await frontend[Symbol.asyncDispose]();
      const { granted, quarantined } = guest.grants.counters;
      assert.deepEqual({ granted, quarantined }, { granted: 0, quarantined: 0 });
      await ends.disposeAsync();
    },
  };
}

/** Writes and reads for a while, in twenty streams at once, each page with what it last wrote. */
async function load(disk: Disk, until: Promise<unknown>): Promise<number> {
  let over = false;
  void until.finally(() => {
    over = true;
  });
  const stream = async (index: number): Promise<number> => {
    let rounds = 0;
    for (; !over || rounds < 3; rounds++) {
      const bytes = new Uint8Array(3 * 4096).fill((index * 7 + rounds) & 0xff);
      await disk.write(index * bytes.length, bytes);
      if (rounds % 5 === 0) await disk.flush();
      assert.deepEqual(await disk.read(index * bytes.length, bytes.length), bytes);
    }
    return rounds;
  };
  const rounds = await Promise.all(Array.from({ length: 20 }, (_, index) => stream(index)));
  return rounds.reduce((sum, each) => sum + each, 0);
}

test(
  "several rings of one vbd carry what one does",
  shows(["2.10"], async () => {
    await using at = await pair(
      { maxQueues: 4 },
      { limits: { maxQueues: 4, maxRingPageOrder: 1 } },
    );
    assert.equal(at.frontend.negotiated.queues, 4);
    assert.ok((await load(at.disk, Promise.resolve())) >= 60);
    assert.equal(at.frontend.counters.errors, 0);
  }),
);

for (const dialect of ["spec", "freebsd", "qemu-windows", "minios"] as const) {
  test(`with blocks of 4096 bytes both ends understand each other as ${dialect}`, async () => {
    await using at = await pair({ sectorSize: 4096, dialect }, { limits: { dialect } });
    assert.equal(at.frontend.info.size, 4 * 2 ** 20);
    await load(at.disk, Promise.resolve());
    const tail = new Uint8Array(1000).fill(5);
    await at.disk.write(4 * 2 ** 20 - 1000, tail);
    assert.deepEqual(await at.disk.read(4 * 2 ** 20 - 1000, 1000), tail);
  });
}

test(
  "a frontend that is suspended and resumed under load loses nothing",
  shows(["4.6.2", "4.6.3"], async () => {
    await using at = await pair({});
    const resumed = (async () => {
      for (let i = 0; i < 5; i++) {
        await at.disk.read(0, 4096);
        if (i % 2 === 0) await at.frontend.suspend();
        await at.frontend.resume();
      }
    })();
    await Promise.all([resumed, load(at.disk, resumed)]);
    assert.equal(at.frontend.counters.errors, 0);
  }),
);

test("a backend that is begun anew under load is found again, and nothing is lost", async () => {
  await using at = await pair({ maxQueues: 2 }, { reconnect: true, limits: { maxQueues: 2 } });
  const restarted = (async () => {
    for (let i = 0; i < 4; i++) {
      await at.disk.read(0, 4096);
      await at.restart();
    }
  })();
  await Promise.all([restarted, load(at.disk, restarted)]);
  assert.equal(at.frontend.counters.errors, 0);
  assert.ok(at.frontend.counters.freezes.disconnected >= 4);
});
