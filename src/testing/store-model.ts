/** Random requests against a plain array of bytes. */
import assert from "node:assert/strict";
import { RequestFlag } from "../store/block-store.ts";
import { SeededRandom } from "../util/random.ts";
import type { RequestRunner } from "./requests.ts";

export interface StoreModelOptions {
  /** Of a store that has every operation (emulate). */
  readonly runner: RequestRunner;
  readonly seed: number;
  /** Bytes at the start of the disk that are used, whole blocks. */
  readonly size: number;
  /** What the disk holds there. */
  readonly contents: Uint8Array;
  /** Rounds of requests in flight together; 60 if absent. */
  readonly rounds?: number;
}

/** Requests of a round, which do not overlap: there is no order among them. */
const AT_ONCE = 8;

/** What the disk must hold, and where it may hold anything (after a discard). */
class Model {
  readonly bytes: Uint8Array;
  readonly unknown: Uint8Array;

  constructor(contents: Uint8Array) {
    this.bytes = Uint8Array.from(contents);
    this.unknown = new Uint8Array(contents.length);
  }

  set(offset: number, bytes: Uint8Array): void {
    this.bytes.set(bytes, offset);
    this.unknown.fill(0, offset, offset + bytes.length);
  }

  check(offset: number, actual: Uint8Array, when: string): void {
    for (let i = 0; i < actual.length; i++) {
      if (this.unknown[offset + i] === 1 || this.bytes[offset + i] === actual[i]) continue;
      assert.fail(`${when}: byte ${offset + i} is ${actual[i]}, not ${this.bytes[offset + i]}`);
    }
  }
}

/** Rejects with an AssertionError that names the seed and the round. */
export async function runModel(options: StoreModelOptions): Promise<void> {
  const { runner, seed, size, rounds = 60 } = options;
  const random = new SeededRandom(seed);
  const model = new Model(options.contents);
  for (let round = 0; round < rounds; round++) {
    const when = `seed ${seed}, round ${round}`;
    await Promise.all(
      ranges(random, size, runner.store.info.block.minimum).map((range) =>
        step(runner, model, random, range, when),
      ),
    );
  }
  model.check(0, await runner.read(0, size), `seed ${seed}, at the end`);
}

type Range = readonly [offset: number, length: number];

/** Ranges that do not overlap, many of them touching within what a filter takes for a block. */
function ranges(random: SeededRandom, size: number, unit: number): Range[] {
  const window = Math.min(size, unit * (1 << random.below(13)) * 16);
  const base = random.below(Math.floor((size - window) / unit) + 1) * unit;
  const points = Array.from({ length: AT_ONCE * 2 }, () => random.below(window / unit + 1) * unit);
  points.sort((left, right) => left - right);
  const found: Range[] = [];
  for (let i = 0; i < points.length; i += 2) {
    found.push([base + points[i]!, points[i + 1]! - points[i]!]);
  }
  return found;
}

async function step(
  runner: RequestRunner,
  model: Model,
  random: SeededRandom,
  [offset, length]: Range,
  when: string,
): Promise<void> {
  const flags = random.below(4) === 0 ? RequestFlag.forceUnitAccess : 0;
  switch (random.below(6)) {
    case 0:
    case 1: {
      const bytes = Uint8Array.from({ length }, () => random.below(256));
      const segmentLengths = [1 + random.below(5000), 1 + random.below(700)];
      const end = runner.run({ operation: "write", offset, bytes, flags, segmentLengths });
      assert.equal(await end, 0, `${when}: write`);
      model.set(offset, bytes);
      return;
    }
    case 2: {
      const unmap = random.below(2) === 0 ? RequestFlag.mayUnmap : 0;
      const end = runner.run({ operation: "writeZeroes", offset, length, flags: flags | unmap });
      assert.equal(await end, 0, `${when}: zero`);
      model.set(offset, new Uint8Array(length));
      return;
    }
    case 3: {
      const { discard } = runner.store.info;
      if (discard === undefined) return;
      assert.equal(
        await runner.run({ operation: "discard", offset, length }),
        0,
        `${when}: discard`,
      );
      if (discard.zeroes) model.set(offset, new Uint8Array(length));
      else model.unknown.fill(1, offset, offset + length);
      return;
    }
    case 4:
      assert.equal(await runner.run({ operation: "flush" }), 0, `${when}: flush`);
      return;
    default: {
      const segmentLengths = [1 + random.below(9000)];
      const watched = runner.submit({ operation: "read", offset, length, segmentLengths });
      assert.equal(await watched.ended, 0, `${when}: read`);
      assert.ok(watched.guardsHold, `${when}: bytes beside the segments were touched`);
      model.check(offset, watched.bytes, when);
    }
  }
}
