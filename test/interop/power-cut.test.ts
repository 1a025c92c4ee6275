/**
 * A power cut below everything: a disk that forgets, filters, our backend, the ring, our frontend, our NBD server, and
 * several NBD clients that write, force and flush. What a client was told is durable is there afterwards.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Machine, NbdServer, openNbdStore, openStore, registerDriver } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { FilterSpec } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { ForgetfulStore } from "../../src/testing/index.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

const SECTOR = 512;
const CLIENTS = 3;
/** Each client works on as many places at once, and on each of them does one thing after the other. */
const LANES = 4;
const LANE_SECTORS = 48;
const SIZE = 2 ** 20;
/** Of one test; it goes on with other seeds until then. */
const MILLISECONDS = 2500;

/** The disk that was opened last. */
let forgetful: ForgetfulStore | undefined;
registerDriver({
  name: "forgetful",
  summary: "a disk whose power can be cut",
  parameters: {},
  open: async (_options, { reactor }) => {
    forgetful = new ForgetfulStore(reactor, SIZE);
    return forgetful;
  },
});

/** What is known of each sector: the version in it counts the writes to it. */
class Known {
  readonly durable = new Uint32Array(SIZE / SECTOR);
  readonly answered = new Uint32Array(SIZE / SECTOR);
  readonly submitted = new Uint32Array(SIZE / SECTOR);

  /** The bytes of a write, whose every sector tells its version. */
  next(sector: number, count: number): Uint8Array {
    const bytes = new Uint8Array(count * SECTOR);
    for (let i = 0; i < count; i++) {
      const version = ++this.submitted[sector + i]!;
      new Uint32Array(bytes.buffer, i * SECTOR, SECTOR / 4).fill(version);
    }
    return bytes;
  }

  check(disk: Uint8Array, when: string): void {
    for (let sector = 0; sector < this.durable.length; sector++) {
      const words = new Uint32Array(disk.buffer, disk.byteOffset + sector * SECTOR, SECTOR / 4);
      const version = words[0]!;
      assert.ok(
        words.every((word) => word === version),
        `${when}: sector ${sector} is torn`,
      );
      const { [sector]: least } = this.durable;
      const { [sector]: most } = this.submitted;
      assert.ok(
        version >= least! && version <= most!,
        `${when}: sector ${sector} has version ${version}; ${least} was durable, ${most} was sent`,
      );
    }
  }
}

/** A client that works until it is stopped. `cut` tells whether the power is off: answers count no more then. */
async function work(
  disk: Disk,
  known: Known,
  random: SeededRandom,
  first: number,
  cut: { off: boolean },
): Promise<void> {
  const mine = first + LANES * LANE_SECTORS;
  const flush = async () => {
    const covered = known.answered.slice(first, mine);
    await disk.flush();
    if (cut.off) return;
    for (const [i, version] of covered.entries()) {
      known.durable[first + i] = Math.max(known.durable[first + i]!, version);
    }
  };
  const write = async (lane: number, forceUnitAccess: boolean) => {
    const start = random.below(LANE_SECTORS);
    const count = 1 + random.below(LANE_SECTORS - start);
    const sector = first + lane * LANE_SECTORS + start;
    const bytes = known.next(sector, count);
    const versions = known.submitted.slice(sector, sector + count);
    await disk.write(sector * SECTOR, bytes, { forceUnitAccess });
    if (cut.off) return;
    known.answered.set(versions, sector);
    if (forceUnitAccess) known.durable.set(versions, sector);
  };
  const lane = async (index: number) => {
    while (!cut.off) {
      const chance = random.below(10);
      // The disk is losing its power, and a filter may fail requests: what failed promises nothing.
      await (chance < 6 ? write(index, false) : chance < 8 ? write(index, true) : flush()).catch(
        () => {},
      );
    }
  };
  await Promise.all(Array.from({ length: LANES }, (_, index) => lane(index)));
}

/** Resolves to the number of sectors that were durable when the power went. */
async function cutOnce(seed: number, filters: FilterSpec[], driver: string): Promise<number> {
  const random = new SeededRandom(seed);
  await using folder = await temporaryFolder();
  const reactor = new Reactor();
  await using machine = await Machine.start({ reactor });
  const parameters: Record<string, string> = driver === "forgetful" ? {} : { size: String(SIZE) };
  const store = await openStore({ driver, parameters, filters }, { reactor });
  await using attached = await machine.attach(store, { vdev: "xvda" });
  await using ends = new AsyncDisposableStack();
  const server = new NbdServer([{ name: "", store: attached.store }], { reactor });
  // Its last flush may meet the filter that fails requests.
  ends.defer(() => server[Symbol.asyncDispose]().catch(() => {}));
  const { uri } = await server.listen({ path: folder.file("nbd.sock") });
  const known = new Known();
  const cut = { off: false };
  const clients: Disk[] = [];
  for (let i = 0; i < CLIENTS; i++) {
    clients.push(new Disk(await openNbdStore({ reactor, uri, connections: 1 }), reactor));
  }
  const working = clients.map((disk, i) =>
    work(disk, known, random, i * LANES * LANE_SECTORS, cut),
  );
  await new Promise((resolve) => setTimeout(resolve, 5 + random.below(60)));
  cut.off = true;
  forgetful!.powerCut(seed);
  await Promise.all(working);
  for (const disk of clients) await disk[Symbol.asyncDispose]();
  // Through the stack that lived on; a filter may fail it once or twice.
  const bytes = new Uint8Array(SIZE);
  for (let offset = 0; offset < SIZE; offset += 65536) {
    const part = bytes.subarray(offset, offset + 65536);
    for (let tries = 0; ; tries++) {
      const done = await attached.readInto(offset, part).then(
        () => true,
        (error: unknown) => {
          if (tries === 50) throw error;
          return false;
        },
      );
      if (done) break;
    }
  }
  known.check(bytes, `seed ${seed}`);
  return known.durable.reduce((count, version) => count + (version > 0 ? 1 : 0), 0);
}

for (const [what, filters, driver] of [
  ["no filter", [], "forgetful"],
  ["delays", [{ name: "delay", parameters: { wdelay: "1ms", "delay-flush": "2ms" } }], "forgetful"],
  ["a log", [{ name: "log", parameters: {} }], "forgetful"],
  ["errors", [{ name: "error", parameters: { "error-rate": "10%" } }], "forgetful"],
  [
    "delays below errors below a log",
    [
      { name: "log", parameters: {} },
      { name: "error", parameters: { "error-rate": "5%" } },
      { name: "delay", parameters: { delay: "1ms" } },
    ],
    "forgetful",
  ],
  [
    "copy-on-write to it",
    [{ name: "cow", parameters: { "cow-overlay": "forgetful", "cow-block-size": "4K" } }],
    "memory",
  ],
] satisfies [string, FilterSpec[], string][]) {
  test(`with ${what} in between, nothing that a client was told is durable is lost`, async () => {
    const end = performance.now() + MILLISECONDS;
    const first = Number(process.env.VBDKIT_MODEL_SEED ?? Math.floor(Math.random() * 2 ** 31));
    let durable = 0;
    for (let seed = first; performance.now() < end; seed++) {
      durable += await cutOnce(seed, filters, driver);
    }
    assert.ok(durable > 0, "no client was ever told that something is durable");
  });
}
