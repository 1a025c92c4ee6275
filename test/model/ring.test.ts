/** Random requests, resizes and reconnects through our two drivers, against a plain array of bytes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { RequestFlag } from "../../src/store/block-store.ts";
import { explore, seconds } from "./budget.ts";
import { World } from "./world.ts";

const SECTOR = 512;
const SIZE = 2 ** 19;
const SECTORS = SIZE / SECTOR;

/** What both ends may be allowed: every field is a number or a flag, so that counterexamples are short. */
const limits = fc.record({
  frontend: fc.record({
    maxRingPageOrder: fc.nat(4),
    maxIndirectSegments: fc.constantFrom(0, 12, 32, 100, 256),
    persistent: fc.boolean(),
    maxPoolPages: fc.constantFrom(32, 64, 300, 1024),
    protocol: fc.constantFrom("x86_64-abi" as const, "x86_32-abi" as const, "native" as const),
  }),
  backend: fc.record({
    maxRingPageOrder: fc.nat(4),
    maxIndirectSegments: fc.constantFrom(0, 12, 33, 256),
    persistent: fc.boolean(),
    maxPersistentGrants: fc.constantFrom(1, 40, 1056),
    discard: fc.boolean(),
  }),
  grantEntries: fc.constantFrom(128, 512, 32768),
  size: fc.constant(SIZE),
});

type Range = { sector: number; count: number };
const range: fc.Arbitrary<Range> = fc
  .record({ sector: fc.nat(SECTORS - 1), count: fc.oneof(fc.nat(16), fc.nat(64), fc.nat(700)) })
  .map(({ sector, count }) => ({ sector, count: Math.min(Math.max(1, count), SECTORS - sector) }));

const request = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("read" as const),
      range,
      cut: fc.integer({ min: 1, max: 9000 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      range,
      cut: fc.integer({ min: 1, max: 9000 }),
      byte: fc.nat(255),
      durable: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("flush" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("discard" as const), range }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("zero" as const), range, unmap: fc.boolean() }),
  },
);
type Request = typeof request extends fc.Arbitrary<infer T> ? T : never;

const step = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant("together" as const),
      requests: fc.array(request, { minLength: 1, maxLength: 12 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("reconnect" as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("resize" as const),
      pages: fc.integer({ min: 64, max: SIZE / 4096 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("cancel" as const),
      requests: fc.array(request, { minLength: 1, maxLength: 12 }),
    }),
  },
);

/** The disk, and where it may hold anything: after a discard, or after requests of which nobody knows the order. */
class Bytes {
  readonly bytes = new Uint8Array(SIZE);
  readonly unknown = new Uint8Array(SIZE);
  size = SIZE;

  set({ sector, count }: Range, byte: number): void {
    this.bytes.fill(byte, sector * SECTOR, (sector + count) * SECTOR);
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

/** Sends a request, cut to the size of the disk; what it does to the model comes when it has ended. */
function send(world: World, model: Bytes, request: Request, cancelled: boolean): Promise<void> {
  const { runner } = world;
  if (request.kind === "flush") {
    return runner.run({ operation: "flush" }).then((status) => {
      if (!cancelled) assert.equal(status, 0, "a flush");
    });
  }
  const { sector } = request.range;
  const count = Math.min(request.range.count, model.size / SECTOR - sector);
  if (count <= 0) return Promise.resolve();
  const cut = { sector, count };
  const offset = sector * SECTOR;
  const length = count * SECTOR;
  const ended = (status: number, byte: number) => {
    if (status === 0 && !cancelled) model.set(cut, byte);
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
        assert.equal(status, 0, `read of ${count} sectors at ${sector}`);
        assert.ok(watched.guardsHold, "bytes beside the segments were touched");
        model.check(offset, watched.bytes);
      });
    }
    case "write": {
      const bytes = new Uint8Array(length).fill(request.byte);
      const flags = request.durable ? RequestFlag.forceUnitAccess : 0;
      const shape = {
        operation: "write",
        offset,
        bytes,
        flags,
        segmentLengths: [request.cut],
      } as const;
      return runner.run(shape).then((status) => ended(status, request.byte));
    }
    case "zero": {
      const flags = request.unmap ? RequestFlag.mayUnmap : 0;
      const shape = { operation: "writeZeroes", offset, length, flags } as const;
      return runner.run(shape).then((status) => ended(status, 0));
    }
    case "discard": {
      const { discard } = world.frontend.info;
      if (discard === undefined) return Promise.resolve();
      const shape = { operation: "discard", offset, length } as const;
      return runner.run(shape).then((status) => {
        ended(status, 0);
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

test("our two drivers agree with an array of bytes, whatever they agreed on", {
  timeout: (seconds(1) + 60) * 1000,
}, async () => {
  const life = fc.record({ limits, steps: fc.array(step, { minLength: 4, maxLength: 25 }) });
  await explore(0.4, life, async ({ limits, steps }) => {
    await using world = await World.open(limits);
    const model = new Bytes();
    for (const step of steps) {
      switch (step.kind) {
        case "together":
          await Promise.all(
            apart(step.requests).map((request) => send(world, model, request, false)),
          );
          break;
        case "cancel": {
          const ends = apart(step.requests).map((request) => send(world, model, request, true));
          await world.runner.store.cancel(new Error("the model cancels"));
          await Promise.all(ends);
          break;
        }
        case "reconnect":
          await world.detach();
          await world.attach();
          break;
        case "resize": {
          const size = step.pages * 4096;
          const { promise, resolve } = Promise.withResolvers<void>();
          using _told = world.frontend.subscribe({
            resized: (info) => info.size === size && resolve(),
          });
          await world.store.resize(size);
          if (world.frontend.info.size !== size) await promise;
          model.resize(size);
          break;
        }
      }
    }
    model.check(0, await world.runner.read(0, model.size));
    await world.detach();
  });
});
