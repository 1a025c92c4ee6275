/**
 * What a toolstack tells a backend that is not ours of the disk that it is to serve: the kernel's blkback, QEMU, or whoever
 * stands in for tapdisk (libxl's disk_try_backend and device__disk_add, libxl_disk.c).
 */
import { statSync } from "node:fs";
import { XenError } from "../xen/domain.ts";
import type { VbdDescription } from "../xen/toolstack.ts";

/** A disk as xl-disk-configuration(5) describes it. */
export interface ForeignDisk {
  /** A device or a file of the backend's domain; for `tap` whatever its daemon understands. */
  readonly target: string;
  /** raw if absent. Only QEMU knows others. */
  readonly format?: string;
  /** phy is the kernel's blkback, qdisk is QEMU, tap a daemon at backend/vbd3. If absent a device is for the kernel, a file
   * for QEMU, and what another domain has is for its kernel. */
  readonly backendType?: "phy" | "qdisk" | "tap";
  /** The hotplug script that makes a device of the target; by name, or with its path. */
  readonly script?: string;
}

/** Where libxl looks for a script that is only named. */
const SCRIPTS = "/etc/xen/scripts";

/** What belongs into the description of the vbd. `local` is whether the backend's domain is this one, whose devices can be
 * looked at. Throws XenError("ENOENT" | "EINVAL") for a target that such a backend cannot serve. */
export function foreignBackend(
  disk: ForeignDisk,
  local: boolean,
): Pick<VbdDescription, "kind" | "frontendKind" | "params" | "backendNodes"> {
  const { target, format = "raw", script } = disk;
  const device = local && script === undefined ? deviceNumber(target, disk) : undefined;
  const type = disk.backendType ?? typeFor(format, local && script === undefined, device);
  if (format !== "raw" && type !== "qdisk") {
    throw new XenError("EINVAL", `format=${format} is for QEMU alone: backendtype=qdisk`);
  }
  if (type === "qdisk") {
    const driver = { raw: "aio", vhd: "vpc" }[format] ?? format;
    // QEMU looks for the frontend below device/vbd, wherever it is said to be.
    return { kind: "qdisk", params: `${driver}:${target}`, backendNodes: { type } };
  }
  if (type === "tap") {
    return { kind: "vbd3", frontendKind: "vbdkit", params: `aio:${target}` };
  }
  const where = { kind: "vbd", frontendKind: "vbdkit", params: target } as const;
  if (!local || script !== undefined) {
    const name = script ?? "block";
    const path = name.startsWith("/") ? name : `${SCRIPTS}/${name}`;
    return { ...where, backendNodes: { script: path } };
  }
  if (device === undefined) {
    throw new XenError(
      "EINVAL",
      `${target} is a file, and the kernel serves devices: backendtype=qdisk, or losetup first`,
    );
  }
  // What the script `block` would say of it.
  return {
    ...where,
    backendNodes: {
      "physical-device": device,
      "physical-device-path": target,
      "hotplug-status": "connected",
    },
  };
}

function typeFor(
  format: string,
  looked: boolean,
  device: string | undefined,
): "phy" | "qdisk" | "tap" {
  return format !== "raw" || (looked && device === undefined) ? "qdisk" : "phy";
}

/** MAJOR:MINOR in hexadecimal; undefined where the target is no block device. */
function deviceNumber(target: string, { backendType }: ForeignDisk): string | undefined {
  if (backendType === "tap") return undefined;
  const found = statSync(target, { throwIfNoEntry: false });
  if (found === undefined) throw new XenError("ENOENT", `${target}: no such file or directory`);
  if (!found.isBlockDevice()) return undefined;
  // <sys/sysmacros.h>: makedev has the major number in bits 8 to 19, and the minor around it.
  const major = (found.rdev >>> 8) & 0xfff;
  const minor = (found.rdev & 0xff) | ((found.rdev >>> 12) & 0xfff00);
  return `${major.toString(16)}:${minor.toString(16)}`;
}
