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
}
export const defaultBackendLimits: BackendLimits = {
  maxRingPageOrder: MAX_RING_PAGE_ORDER,
  maxIndirectSegments: MAX_INDIRECT_SEGMENTS,
  persistent: true,
  // 32 requests of 11 segments, each with its share of an indirect page: blkback's RING_SIZE * 33.
  maxPersistentGrants: 1056,
  discard: true,
};

/** What a frontend asks for, within what the backend allows. */
export interface FrontendLimits {
  /** 0 to 4. */
  readonly maxRingPageOrder: number;
  /** Segments of an indirect request; 0 asks for none. */
  readonly maxIndirectSegments: number;
  readonly persistent: boolean;
  /** Pages for data in flight. */
  readonly maxPoolPages: number;
  readonly protocol: "x86_64-abi" | "x86_32-abi" | "native";
}
export const defaultFrontendLimits: FrontendLimits = {
  // 128 requests in flight: several connections of depth 32 find room.
  maxRingPageOrder: 2,
  maxIndirectSegments: 32,
  persistent: true,
  // What a backend with blkback's defaults keeps mapped.
  maxPoolPages: 1024,
  protocol: "x86_64-abi",
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
