/** Random requests, resizes and reconnects through our two drivers, against a plain array of bytes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { RequestFlag } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import { explore, seconds } from "./budget.ts";
import {
  enlarge,
  limits,
  type Range,
  type Request,
  SECTOR,
  SIZE,
  type Step,
  step,
} from "./ring-arbitraries.ts";
import { overlaps } from "./spoilt-store.ts";
import { World } from "./world.ts";

/** A backend looks through its persistent pages every tenth of a second where they are too many. */
const IDLE_MILLISECONDS = 120;

/** Whole lives take a tenth of it, on a machine that is busy. */
const PATIENCE_MILLISECONDS = 20_000;

/** The disk, and where it may hold anything: after a discard, or after requests of which nobody knows the order. */
class Bytes {
  readonly bytes = new Uint8Array(SIZE);
  readonly unknown = new Uint8Array(SIZE);
  size = SIZE;

  set({ sector, count }: Range, bytes: Uint8Array): void {
    this.bytes.set(bytes, sector * SECTOR);
    this.unknown.fill(0, sector * SECTOR, (sector + count) * SECTOR);
  }

  forget({ sector, count }: Range): void {
    this.unknown.fill(1, sector * SECTOR, (sector + count) * SECTOR);
  }

  resize(size: number): void {
    this.bytes.fill(0, Math.min(size, this.size));
    this.unknown.fill(0, Math.min(size, this.size));
    this.size = size;
  }

  check(offset: number, seen: Uint8Array): void {
    for (let i = 0; i < seen.length; i++) {
      if (this.unknown[offset + i] === 1 || this.bytes[offset + i] === seen[i]) continue;
      assert.fail(`byte ${offset + i} is ${seen[i]}, not ${this.bytes[offset + i]}`);
    }
  }
}

/** Bytes that differ from sector to sector, and from write to write. */
function contents({ sector, count }: Range, byte: number): Uint8Array {
  const bytes = new Uint8Array(count * SECTOR);
  for (let i = 0; i < bytes.length; i++)
    bytes[i] = byte + (sector + (i >>> 9)) * 31 + (i & 511) * 3;
  return bytes;
}

/** Sends a request, cut to the size of the disk; what it does to the model comes when it has ended. One that touches a
 * bad sector fails, and nobody else does. */
function send(world: World, model: Bytes, request: Request, cancelled: boolean): Promise<void> {
  const { runner, store } = world;
  if (request.kind === "flush") {
    return runner.run({ operation: "flush" }).then((status) => {
      if (!cancelled) assert.equal(status, 0, "a flush");
    });
  }
  const { sector, count: wished } = request.range;
  const count = Math.min(wished, model.size / SECTOR - sector);
  if (count <= 0) return Promise.resolve();
  const cut = { sector, count };
  const offset = sector * SECTOR;
  const length = count * SECTOR;
  const spoilt = overlaps(store.bad, offset, length);
  const ended = (status: number, bytes: Uint8Array) => {
    if (spoilt) model.forget(cut);
    else if (status === 0 && !cancelled) model.set(cut, bytes);
    else if (cancelled) model.forget(cut);
    else assert.equal(status, 0, `${request.kind} of ${count} sectors at ${sector}`);
  };
  switch (request.kind) {
    case "read": {
      const watched = runner.submit({
        operation: "read",
        offset,
        length,
        segmentLengths: [request.cut],
      });
      return watched.ended.then((status) => {
        if (cancelled) return;
        if (spoilt) {
          assert.equal(status, Errno.EIO, "a read of bad sectors");
          return;
        }
        assert.equal(status, 0, `read of ${count} sectors at ${sector}`);
        assert.ok(watched.guardsHold, "bytes beside the segments were touched");
        model.check(offset, watched.bytes);
      });
    }
    case "write": {
      const bytes = contents(cut, request.byte);
      const flags = request.durable ? RequestFlag.forceUnitAccess : 0;
      const shape = {
        operation: "write",
        offset,
        bytes,
        flags,
        segmentLengths: [request.cut],
      } as const;
      return runner.run(shape).then((status) => {
        if (spoilt && !cancelled) assert.equal(status, Errno.EIO, "a write to bad sectors");
        ended(status, bytes);
      });
    }
    case "zero": {
      const flags = request.unmap ? RequestFlag.mayUnmap : 0;
      const shape = { operation: "writeZeroes", offset, length, flags } as const;
      return runner.run(shape).then((status) => ended(status, new Uint8Array(length)));
    }
    case "discard": {
      const { discard } = world.frontend.info;
      if (discard === undefined) return Promise.resolve();
      const shape = { operation: "discard", offset, length } as const;
      return runner.run(shape).then((status) => {
        ended(status, new Uint8Array(length));
        if (!discard.zeroes) model.forget(cut);
      });
    }
  }
}

/** Those that do not overlap one before: there is no order among them. */
function apart(requests: readonly Request[]): Request[] {
  const taken: Range[] = [];
  return requests.filter((request) => {
    if (request.kind === "flush") return true;
    const { sector, count } = request.range;
    const overlaps = taken.some(
      (other) => sector < other.sector + other.count && other.sector < sector + count,
    );
    if (!overlaps) taken.push(request.range);
    return !overlaps;
  });
}

/** A step of the life; when it has ended, nothing is in flight. */
async function take(world: World, model: Bytes, step: Step, large: boolean): Promise<void> {
  const begin = (requests: readonly Request[], cancelled: boolean) => {
    const all = large ? requests.map(enlarged) : requests;
    return apart(all).map((request) => send(world, model, request, cancelled));
  };
  switch (step.kind) {
    case "together":
      await Promise.all(begin(step.requests, false));
      break;
    case "spoilt": {
      world.store.bad = large ? enlarge(step.bad) : step.bad;
      await Promise.all(begin(step.requests, false));
      world.store.bad = undefined;
      break;
    }
    case "cancel": {
      const ends = begin(step.requests, true);
      await world.runner.store.cancel(new Error("the model cancels"));
      await Promise.all(ends);
      break;
    }
    case "suspend": {
      const ends = begin(step.requests, false);
      for (let left = step.turns; left > 0; left--) await turn();
      await world.frontend.suspend(step.wait ? 5000 : 0);
      await world.frontend.resume({ cancelled: step.cancelled });
      await Promise.all(ends);
      break;
    }
    case "idle":
      await new Promise((resolve) => setTimeout(resolve, IDLE_MILLISECONDS));
      break;
    case "reconnect":
      await world.detach();
      await world.attach();
      break;
    case "resize": {
      const size = step.pages * 4096;
      const { promise, resolve } = Promise.withResolvers<void>();
      using _told = world.frontend.subscribe({
        resized: (info) => {
          if (info.size === size) resolve();
        },
      });
      await world.store.resize(size);
      if (world.frontend.info.size !== size) await promise;
      model.resize(size);
    }
  }
}

/** Nothing that was asked for may go unanswered. */
async function ended(step: Step, taken: Promise<void>): Promise<void> {
  const { promise, reject } = Promise.withResolvers<never>();
  const late = () => reject(new Error(`a step never ends: ${JSON.stringify(step)}`));
  const timer = setTimeout(late, PATIENCE_MILLISECONDS);
  await Promise.race([taken, promise]).finally(() => clearTimeout(timer));
}

function enlarged(request: Request): Request {
  return request.kind === "flush" ? request : { ...request, range: enlarge(request.range) };
}

const timeout = (seconds(1) + 60) * 1000;

test("our two drivers agree with an array of bytes, whatever they agreed on", {
  timeout,
}, async (context) => {
  const life = fc.record({ limits, steps: fc.array(step, { minLength: 4, maxLength: 25 }) });
  const lives = await explore(0.4, life, async ({ limits, steps }) => {
    await using world = await World.open(limits);
    const model = new Bytes();
    const large = limits.backend.sectorSize > SECTOR;
    for (const step of steps) await ended(step, take(world, model, step, large));
    model.check(0, await world.runner.read(0, model.size));
    await world.detach();
  });
  context.diagnostic(`${lives} lives`);
});
