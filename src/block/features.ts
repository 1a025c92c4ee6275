/**
 * What each side of a vbd offers, and what both end with (blkif.h, "Feature and Parameter Negotiation").
 *
 * The names of limits are those of Linux's module parameters, in our spelling.
 */
import { BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../wire/blkif.ts";

/** Linux's MAX_INDIRECT_SEGMENTS of blkback: one request moves at most 1 MiB. */
export const MAX_INDIRECT_SEGMENTS = 256;
/** Linux's XENBUS_MAX_RING_GRANT_ORDER: 16 pages. */
export const MAX_RING_PAGE_ORDER = 4;
/** More rings than this bring no more parallelism, only memory. */
export const MAX_QUEUES = 64;

/** What a backend allows; every field has blkback's default. */
export interface BackendLimits {
  /** Ring pages are at most 1 << this; 0 to 4. */
  readonly maxRingPageOrder: number;
  /** Segments of an indirect request; 0 offers none, else 12 to 256. */
  readonly maxIndirectSegments: number;
  /** Offer persistent grants. */
  readonly persistent: boolean;
  /** Persistent grants kept per ring (blkback's max_persistent_grants). */
  readonly maxPersistentGrants: number;
  /** Offer discard, where the store can (the toolstack's discard-enable). */
  readonly discard: boolean;
  /** Rings that a frontend may ask for; 0 for one per CPU (blkback's max_queues). */
  readonly maxQueues: number;
  /** Pages mapped at once for a ring's requests alone, beside those kept as persistent grants. A request that finds no
   * room waits; one runs in any case (blkback's max_buffer_pages). */
  readonly maxBufferPages: number;
  /** A persistent grant that no request used for so long is given back; 0 for never. Seconds. */
  readonly persistentGrantUnusedSeconds: number;
  /** Trace the statistics of each ring every ten seconds, while it is used. */
  readonly logStats: boolean;
  /** Logical block offered. 512, on which all dialects agree, or 4096. Bytes. */
  readonly sectorSize: SectorSize;
  /** How pages are reached that are not kept as persistent grants. */
  readonly grants: GrantUse;
  /** In which units the frontend counts, where the logical block is not 512 bytes. */
  readonly dialect: DialectName;
}
export type SectorSize = 512 | 4096;
/** Mapped, copied to memory of ours and back, or what costs less where we are. With "copy" persistent grants are not
 * offered: there would be nothing to keep. */
export type GrantUse = "auto" | "map" | "copy";
export const defaultBackendLimits: BackendLimits = {
  maxRingPageOrder: MAX_RING_PAGE_ORDER,
  maxIndirectSegments: MAX_INDIRECT_SEGMENTS,
  persistent: true,
  // 32 requests of 11 segments, each with its share of an indirect page: blkback's RING_SIZE * 33.
  maxPersistentGrants: 1056,
  discard: true,
  // What blkfront asks for by default.
  maxQueues: 4,
  maxBufferPages: 1024,
  persistentGrantUnusedSeconds: 60,
  logStats: false,
  sectorSize: 512,
  grants: "auto",
  dialect: "spec",
};

/** What counts one in a field: 512 bytes, or one logical sector of the vbd (its sector-size). */
export type SectorUnit = "512" | "sector-size";

/** In which units a peer writes and reads sectors. All agree where sector-size is 512. */
export interface Dialect {
  /** The `sectors` node. */
  readonly sectors: SectorUnit;
  /** sector_number of a request, and both numbers of a discard. */
  readonly sectorNumber: SectorUnit;
  /** first_sect and last_sect of a segment. */
  readonly segments: SectorUnit;
}

export type DialectName = "spec" | "qemu-windows" | "freebsd" | "minios";

/** The spec since 2024-09 (and Linux, NetBSD, GRUB, OVMF always), and who deviates from it. */
export const dialects: Readonly<Record<DialectName, Dialect>> = {
  spec: { sectors: "512", sectorNumber: "512", segments: "512" },
  "qemu-windows": {
    sectors: "sector-size",
    sectorNumber: "sector-size",
    segments: "sector-size",
  },
  freebsd: { sectors: "sector-size", sectorNumber: "sector-size", segments: "512" },
  minios: { sectors: "sector-size", sectorNumber: "512", segments: "512" },
};

/** Bytes of a unit. */
export function unitBytes(unit: SectorUnit, sectorSize: number): number {
  return unit === "512" ? 512 : sectorSize;
}

/** What a frontend asks for, within what the backend allows. */
export interface FrontendLimits {
  /** Rings, each with its event channel; 1 to 64 (Linux's max_queues). */
  readonly maxQueues: number;
  /** 0 to 4. */
  readonly maxRingPageOrder: number;
  /** Segments of an indirect request; 0 asks for none. */
  readonly maxIndirectSegments: number;
  readonly persistent: boolean;
  /** Pages for data in flight, of all rings together. */
  readonly maxPoolPages: number;
  readonly protocol: "x86_64-abi" | "x86_32-abi" | "native";
  /** False: the backend is to see nothing but the data of requests, so that pages are cleared before they are shared
   * (Linux's trusted). The `trusted` key of the frontend's directory can say so too. */
  readonly trusted: boolean;
  /** In which units the backend counts, where its sector-size is not 512. */
  readonly dialect: DialectName;
}
export const defaultFrontendLimits: FrontendLimits = {
  // On one thread a second ring brings nothing.
  maxQueues: 1,
  // 128 requests in flight: several connections of depth 32 find room.
  maxRingPageOrder: 2,
  maxIndirectSegments: 32,
  persistent: true,
  // What a backend with blkback's defaults keeps mapped.
  maxPoolPages: 1024,
  protocol: "x86_64-abi",
  trusted: true,
  dialect: "spec",
};

/** What a connected vbd ended with; both sides come to the same. */
export interface Negotiated {
  readonly protocol: string;
  readonly ringPages: number;
  /** Requests the ring holds. */
  readonly ringSlots: number;
  readonly queues: number;
  /** Segments of the largest request: 11, or what indirect requests allow. */
  readonly maxSegments: number;
  readonly indirect: boolean;
  readonly persistent: boolean;
  readonly flush: boolean;
  readonly barrier: boolean;
  readonly discard: boolean;
  /** Bytes. */
  readonly sectorSize: number;
  /** Bytes. */
  readonly physicalSectorSize: number;
  readonly readOnly: boolean;
  /** 512-byte sectors. */
  readonly sectors: number;
}

/** Segments per request with a given indirect limit (0 or fewer than a direct request's: none). */
export function segmentsFor(indirectSegments: number): number {
  return Math.max(BLKIF_MAX_SEGMENTS_PER_REQUEST, indirectSegments);
}

/** A limit brought into its range; blkback does the same with its module parameters. */
export function clamp(value: number, minimum: number, maximum: number): number {
  return Math.min(Math.max(Math.trunc(value), minimum), maximum);
}
