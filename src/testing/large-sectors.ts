/** Disks of 4096-byte logical sectors, and who counts what in which unit there: all peers agree at 512 alone. */
import { type DialectName, dialects, unitBytes } from "../block/features.ts";

/** Bytes of a logical sector. */
export const LARGE_SECTOR = 4096;

/** Bytes that the numbers of a peer count. */
export interface Units {
  /** The `sectors` node. */
  readonly sectors: number;
  /** sector_number, and both numbers of a discard. */
  readonly sectorNumber: number;
  /** first_sect and last_sect. */
  readonly segments: number;
}

/** Where the logical sector has 512 bytes. */
export const smallUnits: Units = { sectors: 512, sectorNumber: 512, segments: 512 };

/** Where it has LARGE_SECTOR bytes. */
export function largeUnits(name: DialectName): Units {
  const { sectors, sectorNumber, segments } = dialects[name];
  return {
    sectors: unitBytes(sectors, LARGE_SECTOR),
    sectorNumber: unitBytes(sectorNumber, LARGE_SECTOR),
    segments: unitBytes(segments, LARGE_SECTOR),
  };
}
