/**
 * On a real Xen (test/xen/lab): dom0's own blkfront before three backends in one boot, ours, Linux's blkback and QEMU's
 * qdisk, each with its data in memory.
 */
import type { Aim, Contender, Group, OpenedRow, Row } from "../harness/group.ts";
import { type Backend, backends, Dom0, type Load, type Turn } from "./dom0.ts";

/** All rows have one: it boots for longer than a row is measured. */
let booted: Promise<Dom0> | undefined;

async function openRow(load: Load, figure: keyof Turn): Promise<OpenedRow> {
  booted ??= Dom0.boot();
  const dom0 = await booted;
  const round = new Map<Backend, Turn>();
  const contender = (name: Backend, index: number): Contender => ({
    name,
    // Whoever is asked first begins the round, and the others' turns are taken then, too.
    async measure(seconds) {
      if (!round.has(name)) {
        const order = [...backends.slice(index), ...backends.slice(0, index)];
        for (const [each, turn] of await dom0.round(load, seconds, order)) round.set(each, turn);
      }
      const turn = round.get(name)!;
      round.delete(name);
      return turn[figure];
    },
  });
  return {
    contenders: backends.map(contender),
    verify: () => dom0.verify(),
    // The group closes it.
    async [Symbol.asyncDispose]() {},
  };
}

const [, BLKBACK, QDISK] = backends;
const deep: readonly Aim[] = [
  { against: [QDISK], least: 1.5 },
  { against: [BLKBACK], least: 0.7 },
];
const shallow: readonly Aim[] = [{ against: [QDISK], least: 1 }, { against: [BLKBACK] }];
const large: readonly Aim[] = [{ against: [QDISK], least: 1.3 }, { against: [BLKBACK] }];

/** Name, what it is, bytes, depth, and what is expected of both directions. */
const loads = [
  ["4k", "4 KiB", 4096, 1, shallow],
  ["4k", "4 KiB", 4096, 16, deep],
  ["64k", "64 KiB", 65_536, 8, large],
] as const;

function rowsOf(direction: "read" | "write"): Row[] {
  return loads.map(([name, size, blockBytes, depth, aims]) => ({
    name: `${name}-${direction}-${depth}`,
    summary: `${size} random ${direction}, depth ${depth}`,
    unit: "IOPS",
    aims,
    open: () => openRow({ blockBytes, depth, direction }, "requestsPerSecond"),
  }));
}

export const lab: Group = {
  name: "lab",
  summary: "on a real Xen, emulated: vbdkit daemon beside Linux's blkback and QEMU's qdisk",
  columns: backends,
  rows: [
    ...rowsOf("read"),
    ...rowsOf("write"),
    {
      name: "4k-read-16-processor",
      summary: "the backend's time of the processor for a 4 KiB read, depth 16",
      unit: "µs",
      lessIsBetter: true,
      aims: [{ against: [QDISK] }, { against: [BLKBACK] }],
      open: () =>
        openRow({ blockBytes: 4096, depth: 16, direction: "read" }, "backendMicroseconds"),
    },
  ],
  async close() {
    const dom0 = await booted?.catch(() => undefined);
    booted = undefined;
    await dom0?.[Symbol.asyncDispose]();
  },
};
