/** DISK... of `vbdkit serve` as requests to attach them, one vdev after the other. */
import { type AttachRequest, settingsOf, unlocked } from "./attach-request.ts";
import { driverNames } from "./catalogue.ts";
import { checkName, groupDisks } from "./disks.ts";
import { UsageError } from "./errors.ts";
import type { DiskOptions } from "./options.ts";

export interface ServeDiskOptions extends DiskOptions {
  readonly?: true;
  filter?: string[];
  exportName?: string;
  vdev: string;
}

export async function requestsOf(
  words: readonly string[],
  options: ServeDiskOptions,
): Promise<AttachRequest[]> {
  const { parseDisk } = await import("../index.ts");
  const settings = settingsOf(options);
  const drivers = driverNames();
  const groups = groupDisks(words, drivers);
  for (const group of groups) checkName(group, drivers);
  if (groups.length > 1 && options.exportName !== undefined) {
    throw new UsageError("--export-name names one export; several disks are named by their vdevs");
  }
  return groups.map((group, index): AttachRequest => {
    const spec = parseDisk(group, options.filter);
    const vdev = vdevAt(options.vdev, index);
    return {
      ...{ ...settings, vdev, domain: null, cdrom: false, kind: "vbd" },
      text: group.join(" "),
      spec: options.shared ? unlocked(spec) : spec,
      readOnly: options.readonly === true,
      exportName: options.exportName ?? (groups.length === 1 ? "" : vdev),
    };
  });
}

/** xvda, xvdb ... : the vdev of disk `index` where the first has `first`. */
function vdevAt(first: string, index: number): string {
  if (index === 0) return first;
  const match = /^(xvd|sd|hd)([a-z])$/.exec(first);
  const letter = match === null ? 0 : match[2]!.charCodeAt(0) + index;
  if (match === null || letter > 0x7a) {
    throw new UsageError(`--vdev ${first} leaves no name for disk ${index + 1}: use xvda ... xvdz`);
  }
  return match[1] + String.fromCharCode(letter);
}
