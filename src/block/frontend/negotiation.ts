/**
 * What a frontend reads: the backend's directory, before it makes its rings and when the backend shows the device
 * (talk_to_blkback and blkfront_connect of xen-blkfront.c, xbd_initialize and xbd_connect of FreeBSD's blkfront.c).
 *
 * Each key is read on its own, so that a missing one takes none of the others with it; nothing is trusted beyond numbers
 * that are checked here.
 */
import { VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE } from "../../wire/blkif.ts";
import { PAGE_SIZE, XenError, type XenStoreOperations } from "../../xen/domain.ts";
import { parseVdev } from "../../xen/vbd.ts";
import { readFlag, readNumber } from "../../xen/xenbus.ts";
import {
  type DialectName,
  dialects,
  type FrontendLimits,
  segmentsFor,
  unitBytes,
} from "../features.ts";

/** Bytes of a sector in the fields that count in no other. */
export const SECTOR_SIZE = 512;

/** Linux takes no larger block than a page, disks of shingled zones name up to this; a hint need not be believed. */
const MAX_PHYSICAL_SECTOR_BYTES = 1 << 20;

/** Our rings, within what both sides allow. */
export interface RingLimits {
  readonly pageOrder: number;
  readonly queues: number;
  /** Of the largest request, 11 without indirect ones. */
  readonly maxSegments: number;
  /** The backend knows num-ring-pages, the older of the two ways to ask for several pages. */
  readonly oldScheme: boolean;
}

export async function readRingLimits(
  store: XenStoreOperations,
  back: string,
  limits: FrontendLimits,
): Promise<RingLimits> {
  const order = await readNumber(store, `${back}/max-ring-page-order`);
  const pages = await readNumber(store, `${back}/max-ring-pages`);
  const queues = (await readNumber(store, `${back}/multi-queue-max-queues`)) ?? 1;
  const segments = (await readNumber(store, `${back}/feature-max-indirect-segments`)) ?? 0;
  // A page count that is no power of two is rounded down. A backend that says both is taken at the lower.
  const oldOrder = pages === undefined ? undefined : 31 - Math.clz32(Math.max(1, pages));
  const allowed = Math.min(order ?? oldOrder ?? 0, oldOrder ?? order ?? 0);
  return {
    pageOrder: Math.min(allowed, limits.maxRingPageOrder),
    queues: Math.max(1, Math.min(queues, limits.maxQueues)),
    maxSegments: segmentsFor(Math.min(segments, limits.maxIndirectSegments)),
    oldScheme: pages !== undefined,
  };
}

/** The device that a connected backend shows. */
export interface Device {
  /** Bytes. */
  readonly size: number;
  /** Bytes of a logical sector. */
  readonly sectorSize: number;
  /** Bytes; the logical sector where the backend names none that is larger. */
  readonly physicalSectorSize: number;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly removable: boolean;
  readonly flush: boolean;
  readonly barrier: boolean;
  readonly persistent: boolean;
  /** Bytes and flags; undefined where the backend cannot discard. */
  readonly discard:
    | {
        readonly granularity: number;
        readonly alignment: number;
        readonly secure: boolean;
        readonly zeroes: boolean;
      }
    | undefined;
}

/** Throws XenError("EINVAL") where a key without which there is no disk says nothing of use. */
export async function readDevice(
  store: XenStoreOperations,
  back: string,
  dialect: DialectName,
): Promise<Device> {
  const number = (key: string) => readNumber(store, `${back}/${key}`, Number.MAX_SAFE_INTEGER);
  const flag = (key: string) => readFlag(store, `${back}/${key}`);
  const sectors = await number("sectors");
  const sectorSize = await number("sector-size");
  const size = sizeOf(sectors, sectorSize, dialect);
  if (size === undefined || !isSectorSize(sectorSize, dialect)) {
    throw new XenError(
      "EINVAL",
      `${back} shows sectors=${sectors ?? "none"} sector-size=${sectorSize ?? "none"}`,
    );
  }
  const info = (await number("info")) ?? 0;
  const readOnly = (info & VDISK_READONLY) !== 0;
  const physical = await number("physical-sector-size");
  const discard = !readOnly && (await flag("feature-discard"));
  return {
    size,
    sectorSize,
    physicalSectorSize: physicalSize(physical, sectorSize),
    readOnly,
    cdrom: (info & VDISK_CDROM) !== 0,
    removable: (info & VDISK_REMOVABLE) !== 0,
    flush: await flag("feature-flush-cache"),
    barrier: await flag("feature-barrier"),
    persistent: await flag("feature-persistent"),
    discard: discard
      ? {
          granularity: Math.max((await number("discard-granularity")) ?? 0, sectorSize),
          alignment: (await number("discard-alignment")) ?? 0,
          secure: await flag("discard-secure"),
          zeroes: await flag("discard-zeroes"),
        }
      : undefined,
  };
}

/** Bytes of the disk now; undefined where the backend names none. */
export async function readSize(
  store: XenStoreOperations,
  back: string,
  sectorSize: number,
  dialect: DialectName,
): Promise<number | undefined> {
  const sectors = await readNumber(store, `${back}/sectors`, Number.MAX_SAFE_INTEGER);
  return sizeOf(sectors, sectorSize, dialect);
}

/** Undefined for no sectors, and for more than a number holds in bytes. */
function sizeOf(
  sectors: number | undefined,
  sectorSize: number | undefined,
  dialect: DialectName,
): number | undefined {
  if (!sectors || !sectorSize) return undefined;
  const size = sectors * unitBytes(dialects[dialect].sectors, sectorSize);
  // Half a sector at the end cannot be reached.
  return size <= Number.MAX_SAFE_INTEGER && size >= sectorSize
    ? size - (size % sectorSize)
    : undefined;
}

/** A physical sector that is not larger than the logical one is none, and so is one that no disk has. */
function physicalSize(size: number | undefined, sectorSize: number): number {
  const plausible = size !== undefined && size > sectorSize && size <= MAX_PHYSICAL_SECTOR_BYTES;
  return plausible && (size & (size - 1)) === 0 ? size : sectorSize;
}

/** A power of two from 512 on; where segments count in such sectors, one must fit into a page. */
function isSectorSize(size: number | undefined, dialect: DialectName): size is number {
  if (size === undefined || size < SECTOR_SIZE || size > 11 * PAGE_SIZE) return false;
  if (dialects[dialect].segments === "sector-size" && size > PAGE_SIZE) return false;
  return (size & (size - 1)) === 0;
}

/** The number of our device: `virtual-device`, or `virtual-device-ext` where an old toolstack put a large one, in any base
 * that C knows. Throws XenError("EINVAL"). */
export async function readVdev(store: XenStoreOperations, path: string): Promise<number> {
  const text =
    (await store.read(`${path}/virtual-device`)) ??
    (await store.read(`${path}/virtual-device-ext`));
  if (text === undefined) throw new XenError("EINVAL", `reading ${path}/virtual-device`);
  return parseVdev(text.trim());
}
