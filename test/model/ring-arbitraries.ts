/** What the model of the ring chooses from: limits of both ends, requests, and what happens between them. */
import fc from "fast-check";
import type { BackendLimits, DialectName, SectorSize } from "../../src/block/features.ts";
import type { WorldOptions } from "./world.ts";

export const SECTOR = 512;
/** Bytes of the disk. */
export const SIZE: number = 2 ** 19;
const SECTORS = SIZE / SECTOR;
/** All ranges are of whole ones where the disk has such sectors. */
const LARGE_SECTOR = 8;

/** 512-byte sectors. */
export interface Range {
  readonly sector: number;
  readonly count: number;
}

/** `cut`: bytes of each segment of memory. */
export type Request =
  | { readonly kind: "read"; readonly range: Range; readonly cut: number }
  | {
      readonly kind: "write";
      readonly range: Range;
      readonly cut: number;
      readonly byte: number;
      readonly durable: boolean;
    }
  | { readonly kind: "flush" }
  | { readonly kind: "discard"; readonly range: Range }
  | { readonly kind: "zero"; readonly range: Range; readonly unmap: boolean };

export type Step =
  | { readonly kind: "together" | "cancel"; readonly requests: readonly Request[] }
  /** As together, before a disk of which these sectors are bad. */
  | { readonly kind: "spoilt"; readonly requests: readonly Request[]; readonly bad: Range }
  | { readonly kind: "reconnect" }
  /** Long enough for timers to look after what nobody uses. */
  | { readonly kind: "idle" }
  | { readonly kind: "resize"; readonly pages: number }
  | {
      readonly kind: "suspend";
      readonly requests: readonly Request[];
      /** Of the event loop, before the suspension: with none, nothing of the requests has been sent yet. */
      readonly turns: number;
      readonly cancelled: boolean;
      readonly wait: boolean;
    };

export interface Limits extends WorldOptions {
  readonly backend: Partial<BackendLimits> & { readonly sectorSize: SectorSize };
}

/** What both ends may be allowed: every field is a number or a flag, so that counterexamples are short. */
export const limits: fc.Arbitrary<Limits> = fc
  .record({
    frontend: fc.record({
      maxRingPageOrder: fc.nat(4),
      maxIndirectSegments: fc.constantFrom(0, 12, 32, 100, 256),
      persistent: fc.boolean(),
      maxPoolPages: fc.constantFrom(32, 64, 300, 1024),
      protocol: fc.constantFrom("x86_64-abi" as const, "x86_32-abi" as const, "native" as const),
      maxQueues: fc.constantFrom(1, 1, 2, 4),
      trusted: fc.boolean(),
    }),
    backend: fc.record({
      maxRingPageOrder: fc.nat(4),
      maxIndirectSegments: fc.constantFrom(0, 12, 33, 256),
      persistent: fc.boolean(),
      maxPersistentGrants: fc.constantFrom(1, 40, 1056),
      discard: fc.boolean(),
      maxQueues: fc.constantFrom(1, 4),
      maxBufferPages: fc.constantFrom(1, 20, 1024),
      persistentGrantUnusedSeconds: fc.constantFrom(0, 1, 60),
    }),
    // Fewer than a ring and its requests need, and enough.
    grantEntries: fc.constantFrom(256, 1024, 32768),
    shuffle: fc.option(fc.nat(), { nil: undefined }),
    sectorSize: fc.constantFrom<SectorSize>(512, 512, 4096),
    dialect: fc.constantFrom<DialectName>("spec", "qemu-windows", "freebsd", "minios"),
  })
  .map(({ frontend, backend, grantEntries, shuffle, sectorSize, dialect }) => ({
    frontend: { ...frontend, dialect },
    backend: { ...backend, sectorSize, dialect },
    grantEntries,
    shuffle,
    size: SIZE,
  }));

const range: fc.Arbitrary<Range> = fc
  .record({ sector: fc.nat(SECTORS - 1), count: fc.oneof(fc.nat(16), fc.nat(64), fc.nat(700)) })
  .map(({ sector, count }) => ({ sector, count: Math.min(Math.max(1, count), SECTORS - sector) }));

/** The range in whole sectors of 4096 bytes. */
export function enlarge({ sector, count }: Range): Range {
  const start = sector - (sector % LARGE_SECTOR);
  return {
    sector: start,
    count: Math.ceil((sector + count - start) / LARGE_SECTOR) * LARGE_SECTOR,
  };
}

const request: fc.Arbitrary<Request> = fc.oneof(
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

/** Small reads or writes side by side, in one memory or scattered, which may go as one. */
const run: fc.Arbitrary<Request[]> = fc
  .record({
    kind: fc.constantFrom("read" as const, "write" as const),
    sector: fc.nat(SECTORS - 1),
    counts: fc.oneof(
      fc.array(fc.constantFrom(1, 1, 1, 2, 8), { minLength: 2, maxLength: 40 }),
      fc.array(fc.constantFrom(8, 8, 16, 40, 7), { minLength: 2, maxLength: 20 }),
    ),
    cut: fc.integer({ min: 300, max: 9000 }),
    byte: fc.nat(255),
  })
  .map(({ kind, sector, counts, cut, byte }) => {
    const requests: Request[] = [];
    for (const count of counts) {
      if (sector + count > SECTORS) break;
      const range = { sector, count };
      if (kind === "read") requests.push({ kind, range, cut });
      else requests.push({ kind, range, cut, byte, durable: false });
      sector += count;
    }
    return requests;
  });

const requests: fc.Arbitrary<Request[]> = fc
  .array(
    fc.oneof(
      { weight: 8, arbitrary: request.map((one): Request[] => [one]) },
      { weight: 1, arbitrary: run },
    ),
    { minLength: 1, maxLength: 12 },
  )
  .map((some) => some.flat());

export const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant("together" as const),
      requests,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("spoilt" as const), requests, bad: range }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("reconnect" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("idle" as const) }) },
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
      requests,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("suspend" as const),
      requests,
      turns: fc.nat(2),
      cancelled: fc.boolean(),
      wait: fc.boolean(),
    }),
  },
);
