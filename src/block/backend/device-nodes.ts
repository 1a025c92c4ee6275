/**
 * The nodes of a backend's directory: what the toolstack wrote there of the device, and what we publish (blkif.h;
 * connect of xen-blkback's xenbus.c).
 */
import type { BlockStoreInfo } from "../../store/block-store.ts";
import { VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE } from "../../wire/blkif.ts";
import type { XenStoreOperations } from "../../xen/domain.ts";
import { readFlag, readNumber, XenbusState } from "../../xen/xenbus.ts";
import type { BackendLimits } from "../features.ts";

export type Keys = Readonly<Record<string, number | string>>;

/** What a toolstack said of the device. */
export interface DeviceNodes {
  /** Writes are refused whatever the disk allows. */
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly removable: boolean;
  /** False where discard-enable is 0. */
  readonly discard: boolean;
}

/** What a backend before us had promised a frontend that is still connected. */
export interface LeftNodes {
  /** It offered as much; we offer no less. */
  readonly limits: Pick<
    BackendLimits,
    "maxRingPageOrder" | "maxQueues" | "maxIndirectSegments" | "persistent"
  >;
  readonly sectorSize: number;
  /** Of the disk, in what the dialect counts. */
  readonly sectors: number;
  readonly flush: boolean;
  readonly discard: boolean;
}

/** undefined where no backend left the device connected. */
export async function readLeftNodes(
  store: XenStoreOperations,
  path: string,
): Promise<LeftNodes | undefined> {
  if ((await readNumber(store, `${path}/state`)) !== XenbusState.connected) return undefined;
  const number = async (key: string, missing: number) =>
    (await readNumber(store, `${path}/${key}`, Number.MAX_SAFE_INTEGER)) ?? missing;
  return {
    limits: {
      maxRingPageOrder: await number("max-ring-page-order", 0),
      maxQueues: await number("multi-queue-max-queues", 1),
      maxIndirectSegments: await number("feature-max-indirect-segments", 0),
      persistent: await readFlag(store, `${path}/feature-persistent`),
    },
    sectorSize: await number("sector-size", 512),
    sectors: await number("sectors", 0),
    flush: await readFlag(store, `${path}/feature-flush-cache`),
    discard: await readFlag(store, `${path}/feature-discard`),
  };
}

/** `readOnly` refuses writes whatever the mode is. */
export async function readNodes(
  store: XenStoreOperations,
  path: string,
  readOnly: boolean,
): Promise<DeviceNodes> {
  // "w!" of old toolstacks: write, although someone else may too.
  const mode = (await store.read(`${path}/mode`)) ?? "w";
  return {
    readOnly: readOnly || !mode.startsWith("w"),
    cdrom: (await store.read(`${path}/device-type`)) === "cdrom",
    removable: await readFlag(store, `${path}/removable`),
    discard: (await readNumber(store, `${path}/discard-enable`)) !== 0,
  };
}

/** What a frontend may ask for: published before InitWait. */
export function limitKeys(limits: BackendLimits): Keys {
  const { maxRingPageOrder, maxIndirectSegments, maxQueues } = limits;
  return {
    "max-ring-page-order": maxRingPageOrder,
    // The old name of the same, which FreeBSD reads.
    "max-ring-pages": 1 << maxRingPageOrder,
    "multi-queue-max-queues": maxQueues,
    ...(maxIndirectSegments > 0 ? { "feature-max-indirect-segments": maxIndirectSegments } : {}),
    "hotplug-status": "connected",
  };
}

export interface Device {
  readonly limits: BackendLimits;
  /** Bytes; undefined where discard is not offered. */
  readonly discard: BlockStoreInfo["discard"];
  /** Flush and barrier are offered. */
  readonly flush: boolean;
  /** In what the dialect counts. */
  readonly sectors: number;
  readonly nodes: DeviceNodes;
  readonly readOnly: boolean;
  /** Bytes. */
  readonly physicalSectorSize: number;
}

/** What a frontend reads when it sees Connected. */
export function deviceKeys(device: Device): Keys {
  const { limits, discard, flush, nodes, readOnly } = device;
  return {
    "feature-flush-cache": flush ? 1 : 0,
    "feature-barrier": flush ? 1 : 0,
    "feature-discard": discard === undefined ? 0 : 1,
    ...(discard && {
      "discard-granularity": Math.max(discard.granularity, limits.sectorSize),
      "discard-alignment": discard.alignment,
      "discard-secure": discard.secure ? 1 : 0,
      // Ours alone, like Linux's queue/discard_zeroes_data: other frontends do not look for it.
      "discard-zeroes": discard.zeroes ? 1 : 0,
    }),
    "feature-persistent": limits.persistent ? 1 : 0,
    sectors: device.sectors,
    info:
      (nodes.cdrom ? VDISK_CDROM : 0) |
      (nodes.removable ? VDISK_REMOVABLE : 0) |
      (readOnly ? VDISK_READONLY : 0),
    "sector-size": limits.sectorSize,
    "physical-sector-size": device.physicalSectorSize,
  };
}

export async function writeKeys(
  operations: XenStoreOperations,
  path: string,
  keys: Keys,
): Promise<void> {
  for (const [key, value] of Object.entries(keys)) {
    await operations.write(`${path}/${key}`, String(value));
  }
}
