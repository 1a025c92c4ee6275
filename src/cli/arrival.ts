/** Of a guest that comes to a machine, by `vbdkit restore` or `vbdkit migrate`: what may be said of it beforehand, and what
 * is said once it is there. */
import { formatSize } from "../util/size.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import { UsageError } from "./errors.ts";
import type { ArrivedDomain } from "./guest-answers.ts";
import type { DiskOptions } from "./options.ts";
import { print, printJson } from "./output.ts";

export interface ArrivalOptions {
  name?: string;
  disk?: string[];
}

/** Throws a UsageError for a disk that is none, or is given twice. */
export async function arrivalOf({ name, disk = [] }: ArrivalOptions): Promise<object> {
  const [{ attachRequestOf }, { parseXlDisk }] = await Promise.all([
    import("./attach-spec.ts"),
    import("./xl-disk.ts"),
  ]);
  const disks: Record<string, unknown> = {};
  for (const text of disk) {
    const { vdev, spec } = attachRequestOf("", parseXlDisk([text]), ringless);
    const key = vdevName(parseVdev(vdev));
    if (Object.hasOwn(disks, key)) throw new UsageError(`--disk: ${key} is given twice`);
    disks[key] = spec;
  }
  return { name, disks };
}

/** How the disk is opened and what its ends agree on are saved with the guest. */
const ringless: DiskOptions = { engine: "auto", link: "thread", persistent: true, discard: true };

export function sayArrived(guest: ArrivedDomain, json: boolean): void {
  if (json) {
    printJson(guest);
    return;
  }
  const { name, domid, inherited, disks } = guest;
  const again = inherited === 1 ? "1 request" : `${inherited} requests`;
  const flight = inherited === 0 ? "" : `; ${again} that were in flight have been carried out`;
  print(`${name} (${domid}) runs${flight}`);
  for (const { vdev, size, access, uri } of disks) {
    print(`  ${vdev}: ${formatSize(size)}${access === "r" ? ", read-only" : ""}, ${uri}`);
  }
}
