/** What a ring counts, the sum over a vbd's rings, and the same under the names of Linux's sysfs (statistics/ of a vbd). */

/** Why requests were left on the ring, each counted every time the ring was looked at and left for it. */
export interface StallCounters {
  /** No slot of ours was free. */
  slots: number;
  /** Its pages would have been more than max_buffer_pages. */
  bufferPages: number;
  /** A barrier, on this ring or another, waits to be alone or is. */
  barrier: number;
  /** A broken request came less than a millisecond before. */
  brokenRequest: number;
}

/** Counted since the ring was connected. */
export interface QueueCounters {
  requests: number;
  responses: number;
  /** Times the ring had a request and no slot of ours was free (oo_req). */
  outOfRequests: number;
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  /** 512-byte sectors. */
  readSectors: number;
  /** 512-byte sectors. */
  writtenSectors: number;
  errors: number;
  /** Refused requests by the name of the rule. */
  brokenRules: Record<string, number>;
  stalls: StallCounters;
  /** Requests that the store carries out now. */
  inFlight: number;
  /** Pages of the peer mapped now. */
  mappedPages: number;
  /** Of those, kept as persistent grants. */
  persistentPages: number;
  /** Kept pages that were given back because they were old, or too many. */
  purgedPages: number;
}

/** The part of QueueCounters that is counted request by request. */
export class RequestCounters {
  requests = 0;
  responses = 0;
  outOfRequests = 0;
  reads = 0;
  writes = 0;
  flushes = 0;
  discards = 0;
  readSectors = 0;
  writtenSectors = 0;
  errors = 0;
}

/** The sum over the rings of a vbd. */
export function sumCounters(rings: readonly QueueCounters[]): QueueCounters {
  const sum: QueueCounters = {
    ...new RequestCounters(),
    brokenRules: {},
    stalls: { slots: 0, bufferPages: 0, barrier: 0, brokenRequest: 0 },
    inFlight: 0,
    mappedPages: 0,
    persistentPages: 0,
    purgedPages: 0,
  };
  for (const ring of rings) addInto(sum, ring);
  return sum;
}

function addInto(sum: object, part: object): void {
  const total = sum as Record<string, number | object>;
  for (const [name, value] of Object.entries(part)) {
    if (typeof value === "number") total[name] = ((total[name] ?? 0) as number) + value;
    else addInto(total[name] as object, value);
  }
}

/** By the names of /sys/bus/xen-backend/devices/vbd-D-V/statistics/. */
export interface LinuxStatistics {
  readonly oo_req: number;
  readonly rd_req: number;
  readonly wr_req: number;
  readonly f_req: number;
  readonly ds_req: number;
  /** 512-byte sectors. */
  readonly rd_sect: number;
  /** 512-byte sectors. */
  readonly wr_sect: number;
}

export function linuxStatistics(counters: QueueCounters): LinuxStatistics {
  return {
    oo_req: counters.outOfRequests,
    rd_req: counters.reads,
    wr_req: counters.writes,
    f_req: counters.flushes,
    ds_req: counters.discards,
    rd_sect: counters.readSectors,
    wr_sect: counters.writtenSectors,
  };
}
