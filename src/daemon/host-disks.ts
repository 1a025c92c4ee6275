/**
 * Disks of a Xen host's guests, as the toolstack sees them: made, looked at and removed through the xenstore alone, where
 * a daemon of ours finds them (libxl_device.c: device__disk_add, libxl__initiate_device_generic_remove).
 *
 * Invariant: where a disk is, is read from directories that no guest can write; what a toolstack of another made is not
 * removed.
 */
import { systemClock } from "../util/clock.ts";
import { XenError, type XenStore } from "../xen/domain.ts";
import {
  askToClose,
  createVbd,
  readFirstRing,
  removeVbd,
  type VbdPaths,
} from "../xen/toolstack.ts";
import { frontendPath, parseVdev, vdevName } from "../xen/vbd.ts";
import { parseState, readNumber, XenbusState } from "../xen/xenbus.ts";

/** Directories below backend/ in which ours are. */
const KINDS = ["vbd3", "vbd"] as const;
/** In a backend's directory: what it is served from, by our own tools. JSON; not for the guest's eyes. */
export const REQUEST_NODE = "vbdkit";
/** libxl gives a backend ten seconds to come to InitWait, and to Closed; a process of ours may have to start first. */
const PATIENCE_MILLISECONDS = 20_000;

const DOMID = /^\d{1,5}$/;

export interface HostGuest {
  readonly domid: number;
  readonly name: string;
}

export interface HostDisk {
  readonly guest: HostGuest;
  readonly vdev: number;
  readonly backendDomid: number;
  readonly paths: VbdPaths;
  /** Of the backend. */
  readonly state: XenbusState;
  /** Bytes; undefined before a frontend has connected. */
  readonly size: number | undefined;
  readonly readOnly: boolean;
  /** params of the backend. */
  readonly text: string;
  readonly ring: { readonly eventChannel?: number; readonly ringRef?: number };
  /** Made by `attachHostDisk`, else by another toolstack. */
  readonly ours: boolean;
  readonly error: string | undefined;
}

/** All domains, dom0 too. */
export async function listGuests(store: XenStore): Promise<HostGuest[]> {
  const domids = ((await store.list("/local/domain")) ?? []).filter((name) => DOMID.test(name));
  const guests = await Promise.all(
    domids.map(async (domid) => ({
      domid: Number(domid),
      // A driver domain may not read the names of others.
      name: (await store.read(`/local/domain/${domid}/name`).catch(() => undefined)) ?? domid,
    })),
  );
  return guests.sort((left, right) => left.domid - right.domid);
}

export interface HostDiskDescription {
  readonly backendDomid: number;
  readonly guest: HostGuest;
  readonly vdev: string;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly discard: boolean;
  /** For people. */
  readonly text: string;
  /** For the daemon: see REQUEST_NODE. */
  readonly request: string;
  readonly signal: AbortSignal;
}

/** Writes the nodes and waits until a daemon has taken the disk up. Rejects, and leaves nothing behind, with
 * XenError("EEXIST") where there is such a disk, ("ETIMEDOUT") where nobody serves it, and what a daemon says of it. */
export async function attachHostDisk(
  store: XenStore,
  disk: HostDiskDescription,
): Promise<HostDisk> {
  const vdev = parseVdev(disk.vdev);
  const { guest, signal, backendDomid } = disk;
  const paths = await createVbd(store, {
    frontendDomid: guest.domid,
    backendDomid,
    vdev,
    readOnly: disk.readOnly,
    cdrom: disk.cdrom,
    params: disk.text,
    kind: "vbd3",
    discard: disk.discard,
    secrets: { [REQUEST_NODE]: disk.request },
  });
  try {
    await untilServed(store, paths.backend, signal);
  } catch (error) {
    await removeVbd(store, paths);
    throw error;
  }
  return (await readDisk(store, guest, vdev, paths.backend))!;
}

/** Looks until there is something to find: at once, and whenever something below the path changes. undefined where there
 * was nothing for a while. */
async function untilFound<T>(
  store: XenStore,
  path: string,
  signal: AbortSignal,
  look: () => Promise<T | undefined>,
): Promise<T | undefined> {
  let changed = Promise.withResolvers<void>();
  const wake = () => changed.resolve();
  let patient = true;
  using _patience = systemClock.after(PATIENCE_MILLISECONDS, () => {
    patient = false;
    wake();
  });
  signal.addEventListener("abort", wake);
  try {
    await using _watch = await store.watch(path, wake);
    for (;;) {
      signal.throwIfAborted();
      // Before the look: what changes during it is looked at again.
      changed = Promise.withResolvers();
      const last = !patient;
      const found = await look();
      if (found !== undefined || last) return found;
      await changed.promise;
    }
  } finally {
    signal.removeEventListener("abort", wake);
  }
}

async function untilServed(store: XenStore, path: string, signal: AbortSignal): Promise<void> {
  const served = await untilFound(store, path, signal, async () => {
    const state = parseState(await store.read(`${path}/state`));
    if (state < XenbusState.initWait) return undefined;
    if ((await store.read(`${path}/hotplug-status`)) !== "error") return true;
    const why = await store.read(`${path}/hotplug-error`);
    throw new XenError("EIO", why ?? "the daemon could not serve it");
  });
  if (served) return;
  throw new XenError(
    "ETIMEDOUT",
    "no daemon took the disk up: start one with vbdkit daemon in the backend's domain",
  );
}

/** Waits until a frontend has connected, or has not for a while; the disk as it is then. */
export async function untilConnected(
  store: XenStore,
  disk: HostDisk,
  signal: AbortSignal,
): Promise<HostDisk> {
  const { guest, vdev, paths } = disk;
  let latest = disk;
  await untilFound(store, paths.backend, signal, async () => {
    latest = (await readDisk(store, guest, vdev, paths.backend)) ?? disk;
    return latest.state >= XenbusState.connected ? true : undefined;
  });
  return latest;
}

/** Takes the disk offline and removes it once the guest has let it go. Rejects with XenError("EBUSY") where it does not,
 * which leaves the disk as it is; `force` removes it whatever the guest does. */
export async function detachHostDisk(
  store: XenStore,
  disk: HostDisk,
  force: boolean,
  signal: AbortSignal,
): Promise<void> {
  const { paths, guest } = disk;
  const name = vdevName(disk.vdev);
  if (!disk.ours) {
    throw new XenError(
      "EPERM",
      `${name} of ${guest.name} was made by its toolstack: xl block-detach ${guest.name} ${name}`,
    );
  }
  if (force) {
    await removeVbd(store, paths);
    return;
  }
  await askToClose(store, paths);
  const closed = await untilFound(store, paths.backend, signal, async () => {
    const text = await store.read(`${paths.backend}/state`);
    return text === undefined || parseState(text) === XenbusState.closed ? true : undefined;
  });
  if (!closed) {
    throw new XenError(
      "EBUSY",
      `${guest.name} does not let ${name} go: is it mounted there? It goes when the guest closes it; --force removes it now`,
    );
  }
  await removeVbd(store, paths);
}

/** The disks that backends of `backendDomid` have for the guest. */
export async function listHostDisks(
  store: XenStore,
  backendDomid: number,
  guest: HostGuest,
): Promise<HostDisk[]> {
  const disks: HostDisk[] = [];
  for (const kind of KINDS) {
    const folder = `/local/domain/${backendDomid}/backend/${kind}/${guest.domid}`;
    for (const vdev of (await store.list(folder)) ?? []) {
      if (!/^\d{1,10}$/.test(vdev)) continue;
      const disk = await readDisk(store, guest, Number(vdev), `${folder}/${vdev}`);
      if (disk !== undefined) disks.push(disk);
    }
  }
  return disks.sort((left, right) => left.vdev - right.vdev);
}

async function readDisk(
  store: XenStore,
  guest: HostGuest,
  vdev: number,
  backend: string,
): Promise<HostDisk | undefined> {
  const state = await store.read(`${backend}/state`);
  if (state === undefined) return undefined;
  const frontend = frontendPath(guest.domid, vdev);
  const sectors = await readNumber(store, `${backend}/sectors`, Number.MAX_SAFE_INTEGER);
  return {
    ...{ guest, vdev, paths: { frontend, backend } },
    backendDomid: Number(backend.split("/")[3]),
    state: parseState(state),
    size: sectors === undefined ? undefined : sectors * 512,
    readOnly: (await store.read(`${backend}/mode`)) === "r",
    text: (await store.read(`${backend}/params`)) ?? "",
    ring: await readFirstRing(store, frontend),
    ours: (await store.read(`${backend}/${REQUEST_NODE}`)) !== undefined,
    error: await store.read(`${backend}/error`),
  };
}
