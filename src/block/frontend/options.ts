/** What whoever starts a frontend decides, and what the frontend tells of its device. */
import type { Clock } from "../../util/clock.ts";
import {
  clamp,
  defaultFrontendLimits,
  type FrontendLimits,
  MAX_INDIRECT_SEGMENTS,
  MAX_QUEUES,
  MAX_RING_PAGE_ORDER,
} from "../features.ts";
import { MIN_POOL_PAGES } from "./rings.ts";

/** 1 GiB of data in flight. */
const MAX_POOL_PAGES = 1 << 18;

export interface BlockFrontendOptions {
  readonly limits?: Partial<FrontendLimits>;
  readonly clock: Clock;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
  /** A backend that goes away while its `online` key is not 0 is waited for, and requests with it; otherwise they fail. */
  readonly reconnect?: boolean;
  /** A backend that wants to close is let go at once, whoever holds the disk (today's Linux); otherwise when nobody does
   * any more (Linux 2.6.23). */
  readonly forceClose?: boolean;
}

/** What a frontend is doing. "away": its backend is gone or not there yet, and it waits. */
export type FrontendState = "connected" | "away" | "suspended" | "failed";

/** What the device is, for whoever names or shows it. */
export interface FrontendDevice {
  readonly vdev: number;
  /** xvda */
  readonly name: string;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly removable: boolean;
}

/** The limits of the options, each brought into its range. */
export function limitsOf(options: BlockFrontendOptions): FrontendLimits {
  const limits = { ...defaultFrontendLimits, ...options.limits };
  return {
    ...limits,
    maxQueues: clamp(limits.maxQueues, 1, MAX_QUEUES),
    maxRingPageOrder: clamp(limits.maxRingPageOrder, 0, MAX_RING_PAGE_ORDER),
    maxIndirectSegments: clamp(limits.maxIndirectSegments, 0, MAX_INDIRECT_SEGMENTS),
    maxPoolPages: clamp(limits.maxPoolPages, MIN_POOL_PAGES, MAX_POOL_PAGES),
  };
}
