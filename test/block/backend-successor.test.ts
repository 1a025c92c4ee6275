/** What a backend leaves to its successor: its journal, whenever it was stopped, and a vbd that is connected. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { JournaledRing } from "../../src/block/backend/journaled-ring.ts";
import { RingJournal } from "../../src/block/backend/ring-journal.ts";
import { BlockBackend, type BlockBackendOptions } from "../../src/block/index.ts";
import { FrontRing } from "../../src/ring/front-ring.ts";
import { openStore } from "../../src/store/registry.ts";
import { SeededRandom } from "../../src/util/random.ts";
import {
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_OKAY,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
} from "../../src/wire/blkif.ts";
import { type BackendWorld, backendWorld } from "./backend-world.ts";

const layout = blkifLayout("x86_64-abi");

/** Takes the next request of the ring. */
function take({ back }: World, entry: number, into = new BlkifRequest()): void {
  assert.ok(back.pending() > 0);
  back.take(entry, into);
}

/** A ring of one page and its journal, whose backend can be replaced at any time. */
class World {
  readonly page = new Uint8Array(new ArrayBuffer(4096));
  readonly front = new FrontRing(this.page, layout);
  readonly #journal: Uint8Array = new Uint8Array(RingJournal.byteLength(this.front.size));
  readonly #identity = {
    peer: 1,
    port: 2,
    references: [8],
    size: this.front.size,
    slotSize: layout.requestSize,
  };
  back: JournaledRing = this.#open();

  #open(): JournaledRing {
    return new JournaledRing(this.page, layout, new RingJournal(this.#journal, this.#identity));
  }

  /** The words of the journal, for a writer that is stopped in the middle. */
  get words(): Int32Array {
    return new Int32Array(this.#journal.buffer);
  }

  /** As another process would find all. */
  succeed(): JournaledRing {
    this.back = this.#open();
    return this.back;
  }

  of(port: number): RingJournal {
    return new RingJournal(this.#journal, { ...this.#identity, port });
  }
}

function push({ front }: World, id: number): void {
  const request = new BlkifRequest();
  request.operation = id % 3 === 0 ? BLKIF_OP_WRITE : BLKIF_OP_READ;
  request.idLow = id;
  request.sectorLow = id * 8;
  request.segmentCount = 1 + (id % 11);
  request.references.fill(id + 100);
  front.push(request);
  front.publish();
}

test("however often backends are stopped, each request is answered once, with what it asked for", (t) => {
  const seed = Date.now() % 1e6;
  t.diagnostic(`seed ${seed}`);
  const random = new SeededRandom(seed);
  const world = new World();
  /** Of the backend that lives now: entry -> id of its request. */
  let held = new Map<number, number>();
  const waiting = new Set<number>();
  const raw = new BlkifRequest();
  const response = new BlkifResponse();
  let ids = 0;
  let answered = 0;
  const takeOver = () => {
    const before = [...held.values()];
    const { inherited } = world.succeed();
    held = new Map(
      inherited.map((entry) => {
        world.back.readInherited(entry, raw);
        assert.equal(raw.sectorLow, raw.idLow * 8);
        assert.equal(raw.references[raw.segmentCount - 1], raw.idLow + 100);
        return [entry, raw.idLow];
      }),
    );
    assert.deepEqual([...held.values()].sort(), before.sort());
    assert.deepEqual(
      [...held.values()],
      [...held.values()].sort((l, r) => l - r),
      "in order",
    );
  };
  for (let step = 0; step < 20_000; step++) {
    switch (random.below(6)) {
      case 0:
        if (world.front.free === 0) break;
        push(world, ++ids);
        waiting.add(ids);
        break;
      case 1:
      case 2: {
        if (world.back.pending() === 0 || !world.back.canConsume()) break;
        const entries = Array.from({ length: world.back.size }, (_, entry) => entry);
        const entry = entries.filter((each) => !held.has(each))[0]!;
        world.back.take(entry, raw);
        held.set(entry, raw.idLow);
        break;
      }
      case 3: {
        const [entry, id] = [...held][random.below(held.size)] ?? [];
        if (entry === undefined) break;
        world.back.answer(entry, id!, 0, BLKIF_OP_READ, BLKIF_RSP_OKAY);
        held.delete(entry);
        break;
      }
      case 4:
        world.back.publish();
        for (; world.front.pending() > 0; answered++) {
          world.front.consume(response);
          assert.ok(waiting.delete(response.idLow), `request ${response.idLow} answered once`);
        }
        break;
      default:
        if (random.below(4) === 0) takeOver();
    }
  }
  takeOver();
  for (const [entry, id] of held) world.back.answer(entry, id, 0, BLKIF_OP_READ, BLKIF_RSP_OKAY);
  while (world.back.pending() > 0) {
    world.back.take(0, raw);
    world.back.answer(0, raw.idLow, 0, BLKIF_OP_READ, BLKIF_RSP_OKAY);
  }
  world.back.publish();
  for (; world.front.pending() > 0; answered++) {
    world.front.consume(response);
    assert.ok(waiting.delete(response.idLow));
  }
  assert.equal(waiting.size, 0);
  assert.ok(answered > 1000);
});

test("a backend that was stopped while it took a request has not taken it", () => {
  const world = new World();
  push(world, 1);
  push(world, 2);
  take(world, 0);
  const taken = world.words[2]!;
  take(world, 1);
  // Its last store is what counts.
  world.words[2] = taken;
  assert.deepEqual(world.succeed().inherited, [0]);
  const raw = new BlkifRequest();
  assert.equal(world.back.pending(), 1);
  world.back.take(1, raw);
  assert.equal(raw.idLow, 2);
});

test("responses that were put and not published are published by the successor", () => {
  const world = new World();
  push(world, 1);
  take(world, 0);
  world.back.answer(0, 1, 0, BLKIF_OP_READ, BLKIF_RSP_OKAY);
  assert.equal(world.front.pending(), 0);
  world.succeed();
  assert.equal(world.front.pending(), 1);
});

test("a journal of another connection, or a retired one, is not believed", () => {
  const world = new World();
  push(world, 1);
  take(world, 0);
  assert.equal(world.of(3).kept, false);
  assert.equal(world.of(2).kept, true);
  world.back.retire();
  assert.equal(world.of(2).kept, false);
});

/** The backend leaves, and another comes. */
async function successor(
  at: BackendWorld,
  size: string,
  options: BlockBackendOptions = {},
): Promise<BlockBackend> {
  const store = await openStore(
    { driver: "memory", parameters: { size }, filters: [] },
    { reactor: at.dom0.reactor },
  );
  return await BlockBackend.open(at.dom0, at.paths.backend, store, options);
}

test("a backend that leaves writes nothing, and holds nothing of its frontend", async () => {
  await using at = await backendWorld();
  await at.frontend.connect(0, { persistent: true });
  assert.equal(await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  await at.backend.leave();
  assert.equal(await at.frontend.state("backend"), 4);
  assert.equal(at.dom0.grants.counters.mapped, 0);
});

test("a successor serves the rings that are there, with what was offered on them", async () => {
  await using at = await backendWorld({ limits: { maxIndirectSegments: 64, persistent: false } });
  await at.frontend.connect(0);
  await at.backend.leave();
  await using backend = await successor(at, "1M", { limits: { maxIndirectSegments: 0 } });
  assert.equal(await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  assert.equal(backend.limits.maxIndirectSegments, 64);
  assert.equal(backend.negotiated?.persistent, false);
  assert.equal(await at.frontend.state("backend"), 4);
});

test("a disk that was resized while it had no backend is announced", async () => {
  await using at = await backendWorld();
  await at.frontend.connect(0);
  await at.backend.leave();
  await using _backend = await successor(at, "2M");
  while ((await at.frontend.backendKey("sectors")) !== "4096") {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.equal(await at.frontend.state("backend"), 4);
});

for (const [state, after] of [
  [5, 5],
  [6, 6],
  [1, 2],
] as const) {
  test(`a frontend that went to ${state} while it had no backend gets the answer of one that is there`, async () => {
    await using at = await backendWorld();
    await at.frontend.connect(0);
    await at.backend.leave();
    await at.frontend.become(state);
    await using _backend = await successor(at, "1M");
    await at.frontend.backendIs(after);
  });
}

test("a disk of other sectors is refused to a frontend that is connected", async () => {
  await using at = await backendWorld();
  await at.frontend.connect(0);
  await at.backend.leave();
  await using _backend = await successor(at, "1M", { limits: { sectorSize: 4096 } });
  await at.frontend.backendIs(5);
  assert.match((await at.frontend.backendKey("error")) ?? "", /sectors of 512, not 4096/);
});
