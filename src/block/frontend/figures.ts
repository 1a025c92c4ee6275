/** What was negotiated, under the names by which people of two systems look for it: FreeBSD's sysctls dev.xbd.N.* and
 * Linux's module parameters of xen-blkfront. docs/frontend.md has the table. */
import { PAGE_SIZE } from "../../xen/domain.ts";
import type { FrontendLimits, Negotiated } from "../features.ts";

export interface FrontendFigures {
  /** FreeBSD: requests in flight at most, of all rings. */
  readonly max_requests: number;
  /** FreeBSD: pages per request. */
  readonly max_request_segments: number;
  /** FreeBSD: bytes of a request. */
  readonly max_request_size: number;
  /** FreeBSD: pages of a ring. */
  readonly ring_pages: number;
  /** FreeBSD: "flush, write_barrier, discard, persistent_grants". */
  readonly features: string;
  /** Linux: segments of an indirect request that we ask for. */
  readonly max_indirect_segments: number;
  /** Linux: rings that we ask for. */
  readonly max_queues: number;
  /** Linux: binary logarithm of the ring pages that we ask for. */
  readonly max_ring_page_order: number;
  /** Linux: pages may show what they held before. */
  readonly trusted: boolean;
  /** Linux: ask for persistent grants. */
  readonly feature_persistent: boolean;
}

export function figuresOf(
  negotiated: Negotiated,
  limits: FrontendLimits,
  trusted: boolean,
): FrontendFigures {
  const features: [boolean, string][] = [
    [negotiated.flush, "flush"],
    [negotiated.barrier, "write_barrier"],
    [negotiated.discard, "discard"],
    [negotiated.persistent, "persistent_grants"],
  ];
  return {
    max_requests: negotiated.ringSlots * negotiated.queues,
    max_request_segments: negotiated.maxSegments,
    max_request_size: negotiated.maxSegments * PAGE_SIZE,
    ring_pages: negotiated.ringPages,
    features: features.flatMap(([has, name]) => (has ? [name] : [])).join(", "),
    max_indirect_segments: limits.maxIndirectSegments,
    max_queues: limits.maxQueues,
    max_ring_page_order: limits.maxRingPageOrder,
    trusted,
    feature_persistent: limits.persistent,
  };
}
