/**
 * A thread flips bits in the ring, in the lists of indirect requests and in the grant table of a guest while both
 * drivers are at work. Requests may fail and the device may end; nobody crashes, hangs or keeps a page of the other's.
 *
 * Seeds that once found something are kept in corpus.json.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { BlockBackend, BlockFrontend } from "../../src/block/index.ts";
import { emulate } from "../../src/store/emulate.ts";
import { openStore } from "../../src/store/registry.ts";
import { RequestRunner, type RequestShape, vbdPair } from "../../src/testing/index.ts";
import type { Clock } from "../../src/util/clock.ts";
import { SeededRandom } from "../../src/util/random.ts";
import type { Domain, EventChannel, OwnPages } from "../../src/xen/domain.ts";
import { EmbeddedDomain } from "../../src/xen/embedded/domain.ts";
import { GRANT_ENTRY_BYTES, RESERVED_GRANT_ENTRIES } from "../../src/xen/embedded/layout.ts";
import { seconds } from "./budget.ts";
import type { FlippingOrders } from "./flipping-worker.ts";
import { openPorts } from "./open-ports.ts";

const SIZE = 2 ** 20;
/** How long bits are flipped under one seed. */
const FLIPPING_MILLISECONDS = 150;
/** A life that takes longer hangs. */
const LIFE_MILLISECONDS = 15_000;
const DEPTH = 24;
const DAWDLE_MILLISECONDS = 0.05;
const POOL_PAGES = 64;
const RING_HEADER_BYTES = 64;
/** Entries of the grant table that the guest uses first. */
const GRANTS = 100;

const hasty: Clock = {
  now: () => performance.now(),
  after(milliseconds, callback) {
    const timer = setTimeout(callback, Math.min(milliseconds, 200));
    return { [Symbol.dispose]: () => clearTimeout(timer) };
  },
};

type Target = "ring" | "pages" | "grants";

/** Runs of pages that a domain takes from now on. */
function recordAllocations({ grants }: Domain): OwnPages[] {
  const allocated: OwnPages[] = [];
  const allocate = grants.allocate.bind(grants);
  grants.allocate = (count) => {
    const pages = allocate(count);
    if (pages !== undefined) allocated.push(pages);
    return pages;
  };
  return allocated;
}

/** Each notification of the domain takes a while, in which what was published lies open to the flips. */
function dawdle({ events }: Domain): void {
  const allocate = events.allocateUnbound.bind(events);
  const bind = events.bindInterdomain.bind(events);
  const slow = (channel: EventChannel): EventChannel => {
    const notify = channel.notify.bind(channel);
    channel.notify = () => {
      const until = performance.now() + DAWDLE_MILLISECONDS;
      while (performance.now() < until);
      notify();
    };
    return channel;
  };
  events.allocateUnbound = (peer) => slow(allocate(peer));
  events.bindInterdomain = (peer, port) => slow(bind(peer, port));
}

/** One life of a device under flips. Resolves to the number of requests that failed. */
async function life(seed: number, target: Target): Promise<number> {
  const random = new SeededRandom(seed);
  await using pair = await vbdPair();
  const { backendDomain, frontendDomain, paths, reactor } = pair;
  assert.ok(frontendDomain instanceof EmbeddedDomain);
  const ports = openPorts(backendDomain);
  const parameters = { size: String(SIZE) };
  const store = await openStore({ driver: "memory", parameters, filters: [] }, { reactor });
  const backend = await BlockBackend.open(backendDomain, paths.backend, store);
  const persistent = random.below(2) === 0;
  dawdle(backendDomain);
  dawdle(frontendDomain);
  const allocated = recordAllocations(frontendDomain);
  const frontend = await BlockFrontend.connect(frontendDomain, paths.frontend, {
    clock: hasty,
    limits: { persistent, maxRingPageOrder: random.below(3), maxPoolPages: POOL_PAGES },
  });
  const runner = new RequestRunner(emulate(frontend, reactor), reactor);
  const { memory } = frontendDomain;
  const ring = frontend.ring;
  const pools = allocated.filter(({ start }) => start !== ring.start);
  const slots = {
    start: ring.start + RING_HEADER_BYTES,
    length: ring.bytes.length - RING_HEADER_BYTES,
  };
  const targets: Record<Target, FlippingOrders["targets"]> = {
    // With its indexes, the device ends soon; without them, it is asked for nonsense for longer.
    ring: [random.below(2) === 0 ? slots : { start: ring.start, length: ring.bytes.length }],
    // Lists of segments lie among the pages of data.
    pages: pools.map(({ start, count }) => ({ start, length: count * 4096 })),
    // The entries that are given out first.
    grants: [
      {
        start: memory.shape.grantFrame * 4096 + RESERVED_GRANT_ENTRIES * GRANT_ENTRY_BYTES,
        length: GRANTS * GRANT_ENTRY_BYTES,
      },
    ],
  };
  const control = new Int32Array(new SharedArrayBuffer(8));
  const orders: FlippingOrders = {
    seed,
    bytes: memory.region.bytes,
    targets: targets[target],
    // From a bit now and then to as many as a thread can flip.
    burst: 4 ** random.below(8),
    pause: random.below(3),
    control,
  };
  const worker = new Worker(new URL("./flipping-worker.ts", import.meta.url), {
    workerData: orders,
  });
  const stopped = new Promise<void>((resolve, reject) => {
    worker.once("error", reject).once("exit", () => resolve());
  });
  while (Atomics.load(control, 1) === 0) await turn();
  let failed = 0;
  const until = performance.now() + FLIPPING_MILLISECONDS;
  const lane = async () => {
    while (performance.now() < until) {
      const length = 512 * (1 + random.below(200));
      const offset = 512 * random.below((SIZE - length) / 512);
      const operation = random.below(2) === 0 ? "read" : "write";
      const bytes = new Uint8Array(length);
      const shape =
        operation === "read" ? { operation, offset, length } : { operation, offset, bytes };
      if ((await runner.run(shape as RequestShape)) !== 0) failed++;
      // A device that has ended answers at once.
      await turn();
    }
  };
  const work = Promise.all(Array.from({ length: DEPTH }, lane));
  // An answer may be lost with the flip of an index or of an id: those who wait for it wait until the device is closed.
  await Promise.race([
    work,
    new Promise((resolve) => setTimeout(resolve, FLIPPING_MILLISECONDS * 3)),
  ]);
  Atomics.store(control, 0, 1);
  Atomics.notify(control, 0);
  await stopped;
  await frontend[Symbol.asyncDispose]();
  await work;
  await backend[Symbol.asyncDispose]();
  assert.equal(backendDomain.grants.counters.mapped, 0, "pages that the backend maps");
  assert.equal(openPorts(backendDomain), ports, "ports that the backend has");
  runner[Symbol.dispose]();
  return failed;
}

async function within<T>(promise: Promise<T>, seed: number): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`seed ${seed}: it hangs`)), LIFE_MILLISECONDS);
  try {
    return await Promise.race([promise, late]);
  } catch (error) {
    if (error instanceof Error) error.message = `seed ${seed}: ${error.message}`;
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

const corpus: number[] = JSON.parse(readFileSync(new URL("corpus.json", import.meta.url), "utf8"));

for (const [target, what] of [
  ["ring", "the ring"],
  ["pages", "the pages of data and of lists of segments"],
  ["grants", "the guest's grant table"],
] as const) {
  const timeout = (seconds(1) + 120) * 1000;
  test(`bits that flip in ${what} crash nobody, and nothing stays mapped`, {
    timeout,
  }, async () => {
    const rejections: unknown[] = [];
    const onrejection = (reason: unknown) => void rejections.push(reason);
    process.on("unhandledRejection", onrejection);
    try {
      const first = Number(process.env.VBDKIT_MODEL_SEED ?? Math.floor(Math.random() * 2 ** 31));
      const end = performance.now() + seconds(0.1) * 1000;
      let failed = 0;
      for (const seed of corpus) failed += await within(life(seed, target), seed);
      for (let seed = first; performance.now() < end; seed++) {
        failed += await within(life(seed, target), seed);
      }
      assert.ok(failed > 0, "not one request failed: nobody noticed the flips");
      assert.deepEqual(rejections, []);
    } finally {
      process.off("unhandledRejection", onrejection);
    }
  });
}
