/** What `vbdkit list` tells of a machine's disks: by xl block-list's words where it has them, read from the xenstore as it
 * does; and what only we know. Plain data, stable names. */

import type { GuestState } from "../index.ts";
import type { XenStore } from "../xen/domain.ts";
import { readFirstRing } from "../xen/toolstack.ts";
import { parseVdev } from "../xen/vbd.ts";
import { parseState, stateName } from "../xen/xenbus.ts";
import type { DiskTable, ServedDisk } from "./disk-table.ts";

export interface ListedDomain {
  readonly name: string;
  readonly domid: number;
  /** "running", or why it does not run: "suspend", "poweroff", "reboot", "crash" (sched.h). Absent on a Xen host, where xl
   * list tells. */
  readonly state?: GuestState;
  readonly disks: readonly ListedDisk[];
}

export interface ListedDisk {
  /** The guest's name. */
  readonly domain: string;
  readonly vdev: string;
  /** The number of the vdev. */
  readonly handle: number;
  /** The domid of the backend. */
  readonly backend: number;
  /** A state of xenbus; "detaching" while clients are waited for; "dead" where the backend is. */
  readonly state: string;
  /** Of the first ring; absent where it has none now. */
  readonly eventChannel?: number;
  readonly ringRef?: number;
  /** Bytes. */
  readonly size: number;
  readonly access: "r" | "w";
  readonly link: string;
  /** NBD clients that use it now, and where they find it; absent on a Xen host. */
  readonly clients?: number;
  readonly uri?: string;
  /** As it was typed. */
  readonly disk: string;
  readonly frontendPath: string;
  readonly backendPath: string;
  /** Why it is dead. */
  readonly error?: string;
}

/** `uriOf` an export's name. */
export async function listDisk(
  entry: ServedDisk,
  table: DiskTable,
  store: XenStore,
  uriOf: (exportName: string) => string,
): Promise<ListedDisk> {
  const { disk, error } = entry;
  const { frontend: frontendPath, backend: backendPath } = disk.paths;
  const state = stateName(parseState(await store.read(`${frontendPath}/state`))).toLowerCase();
  const { size, readOnly } = disk.info;
  return {
    domain: entry.guest.name,
    vdev: disk.vdev,
    handle: parseVdev(disk.vdev),
    backend: Number(backendPath.split("/")[3]),
    state: error !== undefined ? "dead" : entry.gone !== undefined ? "detaching" : state,
    ...(await readFirstRing(store, frontendPath)),
    size,
    access: readOnly ? "r" : "w",
    link: entry.link,
    clients: table.clients(entry),
    uri: uriOf(entry.export.name),
    disk: entry.text,
    frontendPath,
    backendPath,
    ...(error === undefined ? {} : { error }),
  };
}
