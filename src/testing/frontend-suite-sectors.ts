/** A frontend before a scripted backend of 4096-byte logical sectors, which counts as one of the dialects. */
import assert from "node:assert/strict";
import type { DialectName } from "../block/features.ts";
import { BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT } from "../wire/blkif.ts";
import type { FrontendBench } from "./frontend-suite.ts";
import { LARGE_SECTOR, largeUnits } from "./large-sectors.ts";
import { runModel } from "./store-model.ts";

/** The frontend's disk has the backend's size and sector, and asks for whole sectors in the backend's units. */
export async function largeSectors(
  bench: FrontendBench,
  dialect: DialectName,
  seed: number,
): Promise<void> {
  const { backend, disk } = bench;
  const units = largeUnits(dialect);
  backend.units = units;
  const perSector = LARGE_SECTOR / units.segments;
  backend.onrequest = (request, queue) => {
    const { operation, sectorLow } = request;
    if (operation !== BLKIF_OP_FLUSH_DISKCACHE) {
      assert.equal((sectorLow * units.sectorNumber) % LARGE_SECTOR, 0, "it begins within a sector");
    }
    if (operation !== BLKIF_OP_DISCARD && operation !== BLKIF_OP_INDIRECT) {
      for (let i = 0; i < request.segmentCount; i++) {
        const count = request.lastSectors[i]! - request.firstSectors[i]! + 1;
        assert.equal(count % perSector, 0, "a segment of a part of a sector");
      }
    }
    bench.serve(request, queue);
  };
  const runner = await bench.connect({
    sectors: String(disk.length / units.sectors),
    "sector-size": String(LARGE_SECTOR),
    "feature-flush-cache": "1",
    "feature-discard": "1",
    "feature-max-indirect-segments": "32",
  });
  const { info } = bench.store;
  assert.equal(info.size, disk.length);
  assert.equal(info.block.minimum, LARGE_SECTOR);
  await runModel({ runner, seed, size: disk.length, contents: disk, rounds: 20 });
  const last = new Uint8Array(LARGE_SECTOR).fill(0x5a);
  await runner.write(disk.length - LARGE_SECTOR, last);
  assert.deepEqual(disk.subarray(disk.length - LARGE_SECTOR), last);
  // What is no whole sector never reaches the backend.
  const seen = backend.seen.length;
  for (const [offset, length] of [
    [512, LARGE_SECTOR],
    [0, 512],
    [disk.length, LARGE_SECTOR],
  ] as const) {
    assert.notEqual(await runner.run({ operation: "read", offset, length }), 0);
  }
  assert.equal(backend.seen.length, seen);
  const { promise, resolve } = Promise.withResolvers<number>();
  using _told = bench.store.subscribe({ resized: ({ size }) => resolve(size) });
  await backend.write({ sectors: String(disk.length / 2 / units.sectors) });
  await backend.become(4);
  assert.equal(await promise, disk.length / 2);
}
