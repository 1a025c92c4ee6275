/** The life of a vbd before a backend: keys that cannot be, states in any order, goodbyes of every kind. */
import assert from "node:assert/strict";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { SeededRandom } from "../util/random.ts";
import { BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY } from "../wire/blkif.ts";
import type { BackendBench, BackendSuiteOptions } from "./backend-bench.ts";
import type { BackendTest } from "./backend-suite.ts";
import { until } from "./vbd-pair.ts";

const brokenKeys: readonly (readonly [
  rows: string[],
  what: string,
  keys: Record<string, string>,
])[] = [
  [["2.9"], "a ring reference that was never granted", { "ring-ref": "30000" }],
  [["2.9"], "a ring reference that is no number", { "ring-ref": "eight" }],
  [["2.9"], "a port that was never offered", { "event-channel": "4000" }],
  [["2.9"], "a port that is no number", { "event-channel": "-1" }],
  [["2.5"], "a protocol that nobody knows", { protocol: "vax-abi" }],
  [["2.6"], "a ring of too many pages", { "ring-page-order": "9" }],
  [["2.6"], "a ring order that is no number", { "ring-page-order": "0x" }],
];

export function backendLife(register: BackendTest, options: BackendSuiteOptions): void {
  for (const [rows, what, keys] of brokenKeys) {
    register(rows, `does not connect to ${what}, and serves the next frontend`, async (bench) => {
      const broken = bench.frontend();
      await broken.backendIs(2);
      await broken.offer(bench.opened.backendDomid, { keys });
      await broken.backendIs(2, 5, 6);
      await broken.become(6);
      await broken.backendIs(6);
      bench.assertNothingHeld(broken);
      // The next one's toolstack has cleaned up.
      for (const key of Object.keys(keys)) {
        await bench.opened.frontendDomain.store.remove(`${broken.paths.frontend}/${key}`);
      }
      await broken.become(1);
      await serves(bench);
    });
  }
  register(
    ["4.6.7"],
    "finishes what is in flight when its frontend closes without a word",
    async (bench) => {
      for (let round = 0; round < 3; round++) {
        const frontend = await bench.connected();
        const operation = options.readOnly === true ? BLKIF_OP_READ : BLKIF_OP_WRITE;
        const requests = Array.from({ length: 16 }, (_, i) =>
          frontend.transfer(operation, i * 8, 2),
        );
        frontend.send(...requests);
        if (round === 1) await turn();
        await frontend.become(6);
        await frontend.backendIs(6);
        bench.assertNothingHeld(frontend);
        await frontend.become(1);
      }
    },
  );
  register(
    ["4.6.8"],
    "serves frontend after frontend, as a loader hands over to a kernel",
    async (bench) => {
      for (let round = 0; round < 5; round++) {
        await serves(bench);
        await sleep(1);
      }
    },
  );
  register(
    ["4.6.5"],
    "bears a frontend that toggles its state faster than anyone can follow",
    async (bench) => {
      const frontend = bench.frontend();
      await frontend.backendIs(2);
      await frontend.offer(bench.opened.backendDomid);
      const states = [4, 6, 1, 3, 5, 6, 1, 4, 3, 6, 2, 8, 7, 0, 6];
      await Promise.all(states.map((state) => frontend.become(state)));
      await frontend.become(6);
      await bench.untilNothingHeld(frontend);
      await frontend.become(1);
      await serves(bench);
    },
  );
  register(["3.4"], "bears its frontend's states in any order", async (bench) => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    const random = new SeededRandom(seed);
    const frontend = bench.frontend();
    await frontend.backendIs(2);
    await frontend.offer(bench.opened.backendDomid);
    for (let step = 0; step < 40; step++) {
      await frontend.become(random.below(9));
      for (let pause = random.below(4); pause > 0; pause--) await turn();
    }
    await frontend.become(6);
    await bench.untilNothingHeld(frontend).catch((error) => {
      throw new Error(`seed ${seed}: ${error.message}`);
    });
    await frontend.become(1);
    await serves(bench);
  });
  register(
    ["4.6.1", "3.4.resize"],
    "tells of another size by sectors, then the same state again",
    resized,
  );
}

/** A whole life of an honest frontend. */
async function serves(bench: BackendBench): Promise<void> {
  const frontend = await bench.connected();
  const read = frontend.transfer(BLKIF_OP_READ, 0, 11);
  assert.equal(await frontend.status(read), BLKIF_RSP_OKAY);
  await frontend.close();
  bench.assertNothingHeld(frontend);
  await frontend.become(1);
}

async function resized(bench: BackendBench): Promise<boolean> {
  const { resize, frontendDomain } = bench.opened;
  if (resize === undefined) return false;
  const frontend = await bench.connected();
  const before = await frontend.backendNumber("sectors");
  const seen: number[] = [];
  // What a frontend does when the state's watch fires: it reads the size.
  await using _watch = await frontendDomain.store.watch(`${frontend.paths.backend}/state`, () => {
    void frontend.backendNumber("sectors").then((sectors) => seen.push(sectors));
  });
  await turn();
  await resize.call(bench.opened, (before + 128) * 512);
  await until(
    () => (seen.at(-1) === before + 128 ? true : undefined),
    () => `the sizes seen are ${seen}`,
    5000,
  );
  const state = await frontend.state("backend");
  assert.equal(state, 4);
  const fresh = frontend.transfer(BLKIF_OP_READ, before, 1);
  assert.equal(await frontend.status(fresh), BLKIF_RSP_OKAY);
  return true;
}
