/**
 * The statistics of vbds as plain data, by the names that Linux shows in
 * /sys/bus/xen-backend/devices/vbd-F-N/statistics (drivers/block/xen-blkback/xenbus.c).
 *
 * Invariant: every number is counted since the ring was connected, except those that say what is now: `inFlight` and
 * the pages of a grant cache.
 */

/** What Linux has a file for. Sectors have 512 bytes. */
export interface VbdStatistics {
  /** Times the ring had a request and the backend nothing to carry it out with. */
  readonly oo_req: number;
  readonly rd_req: number;
  readonly wr_req: number;
  readonly f_req: number;
  readonly ds_req: number;
  readonly rd_sect: number;
  readonly wr_sect: number;
}

export interface RingStatistics {
  readonly statistics: VbdStatistics;
  /** Requests that the store carries out now. */
  readonly inFlight: number;
  /** Requests that the store could not carry out. */
  readonly errors: number;
  /** Requests that were refused, by the name of the rule they broke. */
  readonly brokenRules: Readonly<Record<string, number>>;
  /** Pages of the guest that the backend has mapped now, of those kept mapped from request to request, and how many
   * kept ones were given back because they were old or too many. */
  readonly grantCache: {
    readonly mapped: number;
    readonly persistent: number;
    readonly purged: number;
  };
}

export interface DiskStatistics {
  /** xvda */
  readonly vdev: string;
  /** As it was typed. */
  readonly disk: string;
  /** Where the backend runs: thread, worker or process. */
  readonly link: string;
  /** The guest's number. */
  readonly domain: number;
  /** The guest's name. */
  readonly guest: string;
  /** Sums over the rings. */
  readonly statistics: VbdStatistics;
  readonly inFlight: number;
  readonly rings: readonly RingStatistics[];
  readonly frontend: {
    /** Times a request had to wait, by reason. */
    readonly waits: Readonly<Record<string, number>>;
    /** Requests that went along in the ring request of another (iostat: rrqm and wrqm). */
    readonly merged: number;
    /** Between callers' memory and granted pages. */
    readonly copiedBytes: number;
    readonly errors: number;
  };
}

/** The hypervisor's side: what one domain did with grants and events. */
export interface DomainStatistics {
  readonly domain: number;
  /** Grant entries that give access now. */
  readonly granted: number;
  /** Foreign pages mapped now. */
  readonly mapped: number;
  readonly maps: number;
  readonly unmaps: number;
  readonly copies: number;
  readonly eventsSent: number;
  readonly eventsDelivered: number;
}

/** What `vbdkit stats --json` prints. */
export interface ServerStatistics {
  readonly version: string;
  readonly pid: number;
  readonly uptimeSeconds: number;
  readonly disks: readonly DiskStatistics[];
  readonly domains: readonly DomainStatistics[];
}

/** In the order of Linux's table of attributes. */
export const statisticNames: readonly (keyof VbdStatistics)[] = [
  "oo_req",
  "rd_req",
  "wr_req",
  "f_req",
  "ds_req",
  "rd_sect",
  "wr_sect",
];

/** The sums that Linux shows of a vbd with several rings. */
export function sumStatistics(all: Iterable<VbdStatistics>): VbdStatistics {
  const sum = { oo_req: 0, rd_req: 0, wr_req: 0, f_req: 0, ds_req: 0, rd_sect: 0, wr_sect: 0 };
  for (const statistics of all) {
    for (const name of statisticNames) sum[name] += statistics[name];
  }
  return sum;
}
