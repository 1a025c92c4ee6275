/**
 * Where things lie in the memory of an embedded domain: the binary interface of docs/process-link.md, which a test
 * keeps equal to these constants. Grant entries are struct grant_entry_v1 of xen/include/public/grant_table.h; the
 * pending and mask bitmaps are those of struct shared_info (event_channel.h, 2-level), 4096 bits each.
 *
 * Page 0 is the header, then the grant table, then the events, then ordinary pages. Every word is little-endian, and
 * every word that two domains write is only ever changed by an atomic operation on an aligned 16- or 32-bit unit.
 */
import { DOMID_FIRST_RESERVED, PAGE_SIZE } from "../domain.ts";

/** Words of the header, as indexes of 32-bit words. */
export const Header = {
  /** "vbdk" */
  magic: 0,
  version: 1,
  domid: 2,
  /** DomainState. */
  state: 3,
  /** Pages of the whole memory. */
  pageCount: 4,
  /** First page of the grant table. */
  grantFrame: 5,
  grantEntries: 6,
  /** First page of the events. */
  eventFrame: 7,
  /** Ports that the domain may use, port 0 included. */
  portCount: 8,
  /** First ordinary page: no page before it can be granted. */
  firstFrame: 9,
  /** Mappings that the domain may hold at a time. */
  maptrackEntries: 10,
  /** The page that the domain shares with the xenstore; 0 where it has none. */
  storeFrame: 11,
  /** The domain's port to the xenstore. */
  storePort: 12,
} as const;

export const MAGIC = 0x6b646276;
export const VERSION = 1;

export const DomainState = { alive: 1, dead: 2 } as const;

/** Bytes of struct grant_entry_v1: flags u16, domid u16, frame u32. */
export const GRANT_ENTRY_BYTES = 8;
/** GNTTAB_NR_RESERVED_ENTRIES: references that tools may fill before the domain runs. */
export const RESERVED_GRANT_ENTRIES = 8;
/** A limit for what a header may claim; Linux's gnttab_max_frames default (64 frames) holds 32768 v1 entries. */
export const MAX_GRANT_ENTRIES = 65536;

export const GTF_permit_access = 1;
export const GTF_type_mask = 3;
export const GTF_readonly = 4;
export const GTF_reading = 8;
export const GTF_writing = 16;
/** Of version 2; in version 1 no mapping is permitted by an entry that has it. */
export const GTF_sub_page = 256;

/** Xen gives up after as many changes of an entry between its read and its swap. */
export const UNSTABLE_ENTRY_TRIES = 5;

/** Xen's default: 1024 frames of 256 entries (max_maptrack_frames). */
export const DEFAULT_MAPTRACK_ENTRIES = 262144;
/** A limit for what a header may claim: 20 MiB of a domain's own bookkeeping. */
const MAX_MAPTRACK_ENTRIES = 1 << 20;

/** Ports of a domain at most: what the 2-level interface has on a 64-bit machine, and what 12 bits of a port word
 * name. */
export const PORT_COUNT = 4096;

/** Bytes from the start of the events. */
export const Events = {
  /** Set by whoever made a port pending, before it wakes the domain; cleared by the domain before it looks. */
  upcall: 0,
  /** evtchn_pending: bit p % 32 of word p / 32 belongs to port p. */
  pending: 0x200,
  /** evtchn_mask */
  mask: 0x400,
  /** One port word for each port. */
  ports: 0x1000,
} as const;

const EVENT_FRAMES = 1 + (PORT_COUNT * 4) / PAGE_SIZE;

/** EVTCHNSTAT_*, in bits 12 to 15 of a port word. */
export const PortState = { closed: 0, unbound: 1, interdomain: 2 } as const;

/** A port in one word, so that every transition is one compare-and-swap: remote port in bits 0 to 11, state in 12 to
 * 15, remote domain in 16 to 31. */
export function portWord(state: number, domid: number, port: number): number {
  return ((domid << 16) | (state << 12) | port) >>> 0;
}

export const portState = (word: number): number => (word >>> 12) & 15;
export const portDomain = (word: number): number => word >>> 16;
export const portRemote = (word: number): number => word & 0xfff;

export function isDomid(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < DOMID_FIRST_RESERVED;
}

/** At most 16 GiB: a frame number then fits in 22 bits and a byte in a typed array's range. */
const MAX_PAGES = 1 << 22;

/** The header of a domain, as values. */
export interface DomainShape {
  readonly domid: number;
  readonly pageCount: number;
  readonly grantFrame: number;
  readonly grantEntries: number;
  readonly eventFrame: number;
  readonly portCount: number;
  readonly firstFrame: number;
  readonly maptrackEntries: number;
}

/** What a domain has of everything that can run short. */
export interface DomainLimits {
  /** Entries of the grant table, the reserved ones included: 9 to 65536. */
  readonly grantEntries: number;
  /** Ports, port 0 included, which is never used: 2 to 4096; all of them if absent. */
  readonly portCount?: number;
  /** Mappings of peers' pages at a time: 1 to 2^20; Xen's default if absent. */
  readonly maptrackEntries?: number;
}

/** Lays out a new domain. Throws RangeError where the numbers leave no ordinary page or are out of bounds. */
export function shapeOf(domid: number, pageCount: number, limits: DomainLimits): DomainShape {
  const { grantEntries, portCount = PORT_COUNT } = limits;
  const { maptrackEntries = DEFAULT_MAPTRACK_ENTRIES } = limits;
  const eventFrame = 1 + Math.ceil((grantEntries * GRANT_ENTRY_BYTES) / PAGE_SIZE);
  const shape = {
    domid,
    pageCount,
    grantFrame: 1,
    grantEntries,
    eventFrame,
    portCount,
    firstFrame: eventFrame + EVENT_FRAMES,
    maptrackEntries,
  };
  const fault = shapeFault(shape, pageCount * PAGE_SIZE);
  if (fault !== undefined) throw new RangeError(`a domain cannot have ${fault}`);
  return shape;
}

/** What is wrong with a shape whose memory has `byteLength` bytes; undefined when it can be used as it is. */
export function shapeFault(shape: DomainShape, byteLength: number): string | undefined {
  const { domid, pageCount, grantFrame, grantEntries, eventFrame, firstFrame } = shape;
  const { portCount, maptrackEntries } = shape;
  if (!isDomid(domid)) return `the number ${domid}`;
  if (!(Number.isInteger(pageCount) && pageCount >= 1 && pageCount <= MAX_PAGES)) {
    return `${pageCount} pages`;
  }
  if (pageCount * PAGE_SIZE > byteLength) return `${pageCount} pages in ${byteLength} bytes`;
  if (
    !Number.isInteger(grantEntries) ||
    grantEntries <= RESERVED_GRANT_ENTRIES ||
    grantEntries > MAX_GRANT_ENTRIES
  ) {
    return `${grantEntries} grant entries`;
  }
  if (!(Number.isInteger(portCount) && portCount >= 2 && portCount <= PORT_COUNT)) {
    return `${portCount} ports`;
  }
  const mappings = Number.isInteger(maptrackEntries) && maptrackEntries >= 1;
  if (!mappings || maptrackEntries > MAX_MAPTRACK_ENTRIES) {
    return `${maptrackEntries} maptrack entries`;
  }
  const grantEnd = grantFrame * PAGE_SIZE + grantEntries * GRANT_ENTRY_BYTES;
  if (grantFrame < 1 || grantEnd > eventFrame * PAGE_SIZE) {
    return `its grant table at page ${grantFrame}, before events at page ${eventFrame}`;
  }
  if (firstFrame < eventFrame + EVENT_FRAMES) {
    return `its first ordinary page ${firstFrame} within events at page ${eventFrame}`;
  }
  return firstFrame < pageCount ? undefined : "no ordinary page";
}
