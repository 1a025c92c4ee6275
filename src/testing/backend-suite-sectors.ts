/** A backend that offers logical sectors of 4096 bytes, before a scripted frontend that counts as one of the dialects. */
import assert from "node:assert/strict";
import type { DialectName } from "../block/features.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../wire/blkif.ts";
import {
  assertPattern,
  type BackendBench,
  fillPattern,
  SECTORS_PER_PAGE,
} from "./backend-bench.ts";
import { LARGE_SECTOR, largeUnits } from "./large-sectors.ts";

/** Pages of the longest transfer. */
const PAGES = 16;

/** Reads and writes to the last sector, in segments of whole sectors, and refuses what is beyond or beside them. */
export async function largeSectors(bench: BackendBench, dialect: DialectName): Promise<void> {
  const frontend = bench.frontend();
  const units = largeUnits(dialect);
  frontend.units = units;
  const keys = { "feature-large-sector-size": "1" };
  await frontend.connect(bench.opened.backendDomid, { keys, pages: 2 * PAGES });
  assert.equal(await frontend.backendNumber("sector-size"), LARGE_SECTOR);
  const physical = await frontend.backendNumber("physical-sector-size", LARGE_SECTOR);
  assert.ok(physical >= LARGE_SECTOR, `physical-sector-size ${physical}`);
  const size = (await frontend.backendNumber("sectors")) * units.sectors;
  assert.equal(size % LARGE_SECTOR, 0);
  assert.ok(size >= 2 ** 20, `sectors says ${size} bytes`);
  const end = size / 512;
  const offered = await frontend.backendNumber("feature-max-indirect-segments");
  const counts = offered >= PAGES ? [1, 11, PAGES] : [1, 11];
  for (const count of counts) {
    const sector = end - count * SECTORS_PER_PAGE;
    const make = (operation: number) =>
      count > 11
        ? frontend.indirect(operation, sector, count)
        : frontend.transfer(operation, sector, count);
    const bytes = frontend.bytes(0, count);
    fillPattern(bytes, count);
    assert.equal(await frontend.status(make(BLKIF_OP_WRITE)), BLKIF_RSP_OKAY, `writing ${count}`);
    bytes.fill(0xee);
    assert.equal(await frontend.status(make(BLKIF_OP_READ)), BLKIF_RSP_OKAY, `reading ${count}`);
    assertPattern(bytes, count, `${count} pages at the end`);
  }
  const last = end - SECTORS_PER_PAGE;
  const broken = [
    frontend.transfer(BLKIF_OP_READ, end, 1),
    frontend.transfer(BLKIF_OP_READ, last, 2),
    Object.assign(frontend.transfer(BLKIF_OP_READ, last, 1), {
      // A page and a sector.
      lastSectors: Uint8Array.of(LARGE_SECTOR / units.segments),
    }),
  ];
  if (units.segments < LARGE_SECTOR) {
    // A part of a sector.
    const part = frontend.transfer(BLKIF_OP_READ, last, 1);
    part.lastSectors[0] = 3;
    broken.push(part);
  }
  if (units.sectorNumber < LARGE_SECTOR) {
    // It begins within one.
    const within = frontend.transfer(BLKIF_OP_READ, last, 1);
    within.sectorLow -= 1;
    broken.push(within);
  }
  for (const [i, request] of broken.entries()) {
    assert.equal(await frontend.status(request), BLKIF_RSP_ERROR, `broken request ${i}`);
  }
  const discard = frontend.request(BLKIF_OP_DISCARD, {
    sectorLow: (size - LARGE_SECTOR) / units.sectorNumber,
    discardSectorsLow: LARGE_SECTOR / units.sectorNumber,
  });
  const discards = (await frontend.backendKey("feature-discard")) === "1";
  const expected = discards ? BLKIF_RSP_OKAY : BLKIF_RSP_EOPNOTSUPP;
  assert.equal(await frontend.status(discard), expected, "a discard of the last sector");
  await frontend.close();
  bench.assertNothingHeld(frontend);
}
