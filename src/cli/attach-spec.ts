/**
 * What a disk in xl's syntax (xl-disk.ts) is for us: `target` in the syntax of `vbdkit serve`, filters before it; and
 * what we refuse, in one line that names the parameter.
 */

import { absoluteSpec } from "../store/absolute.ts";
import type { StoreSpec } from "../store/block-store.ts";
import { formatRefusal } from "../store/disk-syntax.ts";
import { filters, parseDisk } from "../store/registry.ts";
import { parseVdev } from "../xen/vbd.ts";
import { type AttachRequest, settingsOf, unlocked } from "./attach-request.ts";
import { driverNames } from "./catalogue.ts";
import { checkName, splitDisk } from "./disks.ts";
import { UsageError } from "./errors.ts";
import type { DiskOptions } from "./options.ts";
import type { XlDisk } from "./xl-disk.ts";

/** Throws UsageError, XenError or StoreError("EINVAL"). */
export function attachRequestOf(domain: string, disk: XlDisk, options: DiskOptions): AttachRequest {
  refuse(disk);
  parseVdev(disk.vdev);
  const { target } = disk;
  if (target === undefined) {
    throw new UsageError("an empty cdrom drive is not served: name a disk in target=");
  }
  const spec = absoluteSpec(diskOf(target.trim(), disk.format));
  const settings = settingsOf(options);
  return {
    domain,
    vdev: disk.vdev,
    text: target.trim(),
    spec: options.shared ? unlocked(spec) : spec,
    readOnly: disk.readOnly,
    cdrom: disk.cdrom,
    kind: disk.backendType === "tap" ? "vbd3" : "vbd",
    exportName: null,
    ...settings,
    backend: { ...settings.backend, ...(disk.discard === false ? { discard: false } : {}) },
    frontend: {
      ...settings.frontend,
      ...(disk.trusted === undefined ? {} : { trusted: disk.trusted }),
    },
  };
}

function refuse({ script, backend, backendType }: XlDisk): void {
  if (script !== undefined) {
    throw new UsageError(
      `script=${script}: no hotplug script is run here; name the disk in target=`,
    );
  }
  if (backend !== undefined && backend !== "0" && backend !== "Domain-0") {
    throw new UsageError(
      `backend=${backend}: there are no driver domains here; --link worker or process gives the backend a domain of its own`,
    );
  }
  if (backendType !== undefined && backendType !== "tap") {
    throw new UsageError(
      `backendtype=${backendType}: the backend is vbdkit's own; leave it out, or write tap for its nodes in backend/vbd3`,
    );
  }
}

/** `[--filter NAME]... [DRIVER] NAME [key=value ...]` */
export function diskOf(target: string, format: XlDisk["format"]): StoreSpec {
  const drivers = driverNames();
  const { names, rest } = leadingFilters(target);
  const words = splitDisk(rest, drivers);
  if (words.length === 0 || rest === "") throw new UsageError("target=: a disk needs a name");
  if (format !== undefined && format !== "raw") {
    if (!filters.has(format)) {
      throw formatRefusal(words[0]!, format, false, (uri) => `write target=${uri}`);
    }
    names.push(format);
  }
  checkName(words, drivers);
  // A person who says raw means the bytes of the file, whatever its name ends with.
  const raw = format === "raw" && !drivers.has(words[0]!) && !words[0]!.includes("://");
  return parseDisk(raw ? ["file", ...words] : words, names);
}

function leadingFilters(target: string): { names: string[]; rest: string } {
  const names: string[] = [];
  let rest = target;
  for (;;) {
    const match = /^--filter(?:=|\s+)(\S+)\s*/.exec(rest);
    if (match === null) break;
    names.push(match[1]!);
    rest = rest.slice(match[0].length);
  }
  if (rest.startsWith("--")) {
    const [option] = rest.split(/[\s=]/, 1);
    throw new UsageError(`target=: only --filter NAME stands before a disk, not ${option}`);
  }
  return { names, rest };
}
