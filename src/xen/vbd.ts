/**
 * What a virtual block device is called: its number, its name, and its places in xenstore, as xen-vbd-interface(7) and
 * the text of <xen/io/blkif.h> give them.
 *
 * The number encodes a bus, a disk and a partition, where partition 0 is the whole disk. Drivers treat it as opaque;
 * only tools that face people take it apart.
 */
import { XenError } from "./domain.ts";

export { VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE } from "../wire/blkif.ts";

/** What a number encodes. Guests need not honour the bus: most show every disk as xvd. */
export interface VirtualDevice {
  readonly bus: "xvd" | "sd" | "hd";
  readonly disk: number;
  /** 0 is the whole disk. */
  readonly partition: number;
}

/** Set where an xvd has a disk or a partition too large for the first form. */
const EXTENDED = 1 << 28;
/** From here on numbers are reserved. */
const RESERVED = 2 << 28;

/** One form of number: `base | (disk - firstDisk) << shift | partition`. */
interface Form {
  readonly bus: VirtualDevice["bus"];
  readonly base: number;
  readonly shift: number;
  readonly firstDisk: number;
  readonly lastDisk: number;
}

/** The table of xen-vbd-interface(7). The first form that has room for a device is the one to use. */
const FORMS: readonly Form[] = [
  { bus: "xvd", base: 202 << 8, shift: 4, firstDisk: 0, lastDisk: 15 },
  { bus: "xvd", base: EXTENDED, shift: 8, firstDisk: 0, lastDisk: 0xf_ffff },
  { bus: "sd", base: 8 << 8, shift: 4, firstDisk: 0, lastDisk: 15 },
  { bus: "hd", base: 3 << 8, shift: 6, firstDisk: 0, lastDisk: 1 },
  { bus: "hd", base: 22 << 8, shift: 6, firstDisk: 2, lastDisk: 3 },
];

/** The number of a device, or undefined when no form has room for it. */
export function encodeVdev(device: VirtualDevice): number | undefined {
  const { bus, disk, partition } = device;
  const form = FORMS.find(
    (f) => f.bus === bus && disk >= f.firstDisk && disk <= f.lastDisk && partition < 1 << f.shift,
  );
  if (form === undefined) return undefined;
  return form.base | ((disk - form.firstDisk) << form.shift) | partition;
}

/** What a number means, or undefined for one of the deprecated or reserved ranges. */
export function decodeVdev(vdev: number): VirtualDevice | undefined {
  for (const { bus, base, shift, firstDisk, lastDisk } of FORMS) {
    const bits = vdev - base;
    if (bits >= 0 && bits < (lastDisk - firstDisk + 1) * 2 ** shift) {
      return { bus, disk: (bits >> shift) + firstDisk, partition: bits & ((1 << shift) - 1) };
    }
  }
  return undefined;
}

/** The number that a person wrote: a name (xvda, xvdaa3, sdb1, hdc), disk and partition (d0, d536p37), or the number
 * itself in decimal, 0x hexadecimal or 0 octal. Throws XenError("EINVAL"). */
export function parseVdev(text: string): number {
  const vdev = parseNumber(text) ?? parseDisk(text) ?? parseName(text);
  if (vdev !== undefined && vdev < RESERVED) return vdev;
  throw new XenError(
    "EINVAL",
    `no such virtual device: ${JSON.stringify(text)}; write xvda, xvda1, d16p2 or a number below ${RESERVED} ` +
      "(sd goes to sdp15, hd to hdd63)",
  );
}

/** The name of a number, as xvda, xvdaa3, sdb1, hdc; the number itself where it has none. */
export function vdevName(vdev: number): string {
  const device = decodeVdev(vdev);
  if (device === undefined) return String(vdev);
  const partition = device.partition === 0 ? "" : device.partition;
  return `${device.bus}${diskLetters(device.disk)}${partition}`;
}

function parseNumber(text: string): number | undefined {
  if (/^(0|[1-9]\d{0,9})$/.test(text)) return Number(text);
  if (/^0x[0-9a-f]{1,8}$/i.test(text)) return Number(text);
  if (/^0[0-7]{1,11}$/.test(text)) return Number.parseInt(text, 8);
  return undefined;
}

function parseDisk(text: string): number | undefined {
  const match = /^d(0|[1-9]\d{0,6})(?:p(0|[1-9]\d{0,2}))?$/.exec(text);
  if (match === null) return undefined;
  return encodeVdev({ bus: "xvd", disk: Number(match[1]), partition: Number(match[2] ?? 0) });
}

/** Five letters are enough for the last disk. */
function parseName(text: string): number | undefined {
  const match = /^(xvd|sd|hd)([a-z]{1,5})([1-9]\d{0,2})?$/.exec(text);
  if (match === null) return undefined;
  let disk = -1;
  for (const letter of match[2]!) disk = (disk + 1) * 26 + letter.charCodeAt(0) - "a".charCodeAt(0);
  const bus = match[1] as VirtualDevice["bus"];
  return encodeVdev({ bus, disk, partition: Number(match[3] ?? 0) });
}

/** a ... z, aa ... zz, aaa ... */
function diskLetters(disk: number): string {
  const last = String.fromCharCode("a".charCodeAt(0) + (disk % 26));
  return disk < 26 ? last : diskLetters(Math.floor(disk / 26) - 1) + last;
}

/** Kinds of backend that serve the block protocol: the kernel's, tapdisk's, QEMU's. */
export type BackendKind = "vbd" | "vbd3" | "qdisk";

/** Kinds of frontend: ours where a kernel has one, which takes every vbd that it sees; and the kernel's. */
export const frontendKinds = ["vbdkit", "vbd"] as const;
export type FrontendKind = (typeof frontendKinds)[number];

/** The frontend's directory: the frontend's domain may write there, so nothing in it is to be trusted. */
export function frontendPath(domid: number, vdev: number, kind: FrontendKind = "vbd"): string {
  return `/local/domain/${domid}/device/${kind}/${vdev}`;
}

/** The backend's directory in the domain `domid` that serves the device. */
export function backendPath(
  domid: number,
  kind: BackendKind,
  frontendDomid: number,
  vdev: number,
): string {
  return `/local/domain/${domid}/backend/${kind}/${frontendDomid}/${vdev}`;
}

/** The toolstack's own copy of where the backend is, which no guest can write (XSA-175). */
export function toolstackPath(frontendDomid: number, vdev: number): string {
  return `/libxl/${frontendDomid}/device/vbd/${vdev}`;
}

/** Directory of the ring keys of a queue; with one queue they lie in the frontend's directory itself. */
export function queuePath(frontend: string, queue: number): string {
  return `${frontend}/queue-${queue}`;
}

/** Key of the grant of a ring's page: of the only page where there is no `ring-page-order`, else of page `index`. */
export function ringReferenceKey(index?: number): string {
  return index === undefined ? "ring-ref" : `ring-ref${index}`;
}

/** Keys of the frontend's directory, beside `ringReferenceKey`. */
export const FrontendKey = {
  backend: "backend",
  backendId: "backend-id",
  state: "state",
  virtualDevice: "virtual-device",
  /** Where old toolstacks put numbers of the extended form. */
  virtualDeviceExtended: "virtual-device-ext",
  deviceType: "device-type",
  trusted: "trusted",
  protocol: "protocol",
  ringPageOrder: "ring-page-order",
  /** Deprecated; FreeBSD writes it beside ring-page-order. */
  ringPages: "num-ring-pages",
  eventChannel: "event-channel",
  queues: "multi-queue-num-queues",
  persistent: "feature-persistent",
  /** Deprecated; Windows writes it. */
  largeSectorSize: "feature-large-sector-size",
} as const;

/** Keys of the backend's directory. */
export const BackendKey = {
  // Written by the toolstack.
  frontend: "frontend",
  frontendId: "frontend-id",
  online: "online",
  state: "state",
  device: "dev",
  type: "type",
  parameters: "params",
  mode: "mode",
  deviceType: "device-type",
  removable: "removable",
  bootable: "bootable",
  discardEnable: "discard-enable",
  directIoSafe: "direct-io-safe",
  // Written by the hotplug script.
  physicalDevice: "physical-device",
  physicalDevicePath: "physical-device-path",
  hotplugStatus: "hotplug-status",
  hotplugError: "hotplug-error",
  // Written by the backend.
  maxRingPageOrder: "max-ring-page-order",
  /** Deprecated; FreeBSD reads it. */
  maxRingPages: "max-ring-pages",
  maxQueues: "multi-queue-max-queues",
  maxIndirectSegments: "feature-max-indirect-segments",
  barrier: "feature-barrier",
  flushCache: "feature-flush-cache",
  discard: "feature-discard",
  discardGranularity: "discard-granularity",
  discardAlignment: "discard-alignment",
  discardSecure: "discard-secure",
  persistent: "feature-persistent",
  sectors: "sectors",
  /** VDISK_* */
  info: "info",
  sectorSize: "sector-size",
  physicalSectorSize: "physical-sector-size",
} as const;
