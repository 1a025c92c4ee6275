/**
 * What a toolstack writes to bring a vbd into being, and to end it: the nodes and rights that libxl's
 * device__disk_add gives (libxl_disk.c, libxl_device.c; keys in blkif.h and xenstore-paths).
 */
import {
  XenError,
  type XenStore,
  type XenStoreOperations,
  type XenStorePermission,
} from "./domain.ts";
import {
  type BackendKind,
  backendPath,
  type FrontendKind,
  frontendKinds,
  frontendPath,
  toolstackPath,
  vdevName,
} from "./vbd.ts";
import { errorPath, parseState, readNumber, XenbusState } from "./xenbus.ts";

export interface VbdDescription {
  readonly frontendDomid: number;
  readonly backendDomid: number;
  readonly vdev: number;
  /** Refuse writes (mode r). */
  readonly readOnly: boolean;
  /** What the disk is, for people: the text of the params node. */
  readonly params: string;
  readonly removable?: boolean;
  readonly cdrom?: boolean;
  /** false writes discard-enable 0. */
  readonly discard?: boolean;
  /** Nodes of the backend's directory that the frontend's domain may not read. */
  readonly secrets?: Readonly<Record<string, string>>;
  /** The directory below backend/: "vbd", or "vbd3", which no kernel driver claims. */
  readonly kind?: BackendKind;
  /** The directory below device/: "vbd", or "vbdkit", which no kernel driver claims. */
  readonly frontendKind?: FrontendKind;
  /** Further nodes of the backend's directory, in place of what stands there otherwise. */
  readonly backendNodes?: Readonly<Record<string, string>>;
}

export interface VbdPaths {
  readonly frontend: string;
  readonly backend: string;
}

export function vbdPaths(vbd: VbdDescription): VbdPaths {
  return {
    frontend: frontendPath(vbd.frontendDomid, vbd.vdev, vbd.frontendKind),
    backend: backendPath(vbd.backendDomid, vbd.kind ?? "vbd", vbd.frontendDomid, vbd.vdev),
  };
}

/** Makes a vbd: writes both directories in one transaction; both ends may start then. Rejects, and has written nothing, with
 * XenError("EEXIST") where the guest has such a device, or a backend is there for one. */
export async function createVbd(store: XenStore, vbd: VbdDescription): Promise<VbdPaths> {
  const paths = vbdPaths(vbd);
  const { frontendDomid, vdev } = vbd;
  const places = [
    ...frontendKinds.map((kind) => frontendPath(frontendDomid, vdev, kind)),
    toolstackPath(frontendDomid, vdev),
    paths.backend,
  ];
  await store.transaction(async (operations) => {
    const taken: string[] = [];
    for (const path of places) {
      if ((await operations.list(path)) !== undefined) taken.push(path);
    }
    if (taken.length > 0) {
      const what = `domain ${frontendDomid} has ${vdevName(vdev)} already (${taken.join(", ")})`;
      throw new XenError("EEXIST", `${what}: choose another vdev, or detach it`);
    }
    await writeVbd(operations, vbd, paths);
  });
  return paths;
}

/** Writes both directories as `createVbd` does, over what is there: a frontend that is there is given another backend. One that
 * has the number of a domain that died has none of its rights. */
export async function recreateVbd(store: XenStore, vbd: VbdDescription): Promise<VbdPaths> {
  const paths = vbdPaths(vbd);
  const { frontendDomid, backendDomid } = vbd;
  await shareAll(store, paths.frontend, directoryPermissions(frontendDomid, backendDomid));
  await store.transaction((operations) => writeVbd(operations, vbd, paths));
  return paths;
}

async function writeVbd(
  operations: XenStoreOperations,
  vbd: VbdDescription,
  paths: VbdPaths,
): Promise<void> {
  await createDirectory(operations, paths.backend, vbd.backendDomid, vbd.frontendDomid);
  await createDirectory(operations, paths.frontend, vbd.frontendDomid, vbd.backendDomid);
  const deviceType = vbd.cdrom === true ? "cdrom" : "disk";
  await writeAll(operations, paths.backend, {
    frontend: paths.frontend,
    "frontend-id": vbd.frontendDomid,
    params: vbd.params,
    online: 1,
    removable: vbd.removable === true ? 1 : 0,
    bootable: 1,
    dev: vdevName(vbd.vdev),
    type: "phy",
    mode: vbd.readOnly ? "r" : "w",
    "device-type": deviceType,
    "discard-enable": vbd.readOnly || vbd.discard === false ? 0 : 1,
    ...vbd.backendNodes,
    state: XenbusState.initialising,
  });
  for (const [key, value] of Object.entries(vbd.secrets ?? {})) {
    const path = `${paths.backend}/${key}`;
    await operations.write(path, value);
    await operations.setPermissions(path, directoryPermissions(vbd.backendDomid));
  }
  await writeAll(operations, paths.frontend, {
    backend: paths.backend,
    "backend-id": vbd.backendDomid,
    "virtual-device": vbd.vdev,
    "device-type": deviceType,
    state: XenbusState.initialising,
  });
}

/** Port and grant of a vbd's first ring, as its frontend wrote them: what block-list shows. */
export async function readFirstRing(
  store: XenStoreOperations,
  frontend: string,
): Promise<{ eventChannel?: number; ringRef?: number }> {
  const first = async (...keys: string[]): Promise<number | undefined> => {
    for (const key of keys) {
      const number = await readNumber(store, `${frontend}/${key}`);
      if (number !== undefined) return number;
    }
    return undefined;
  };
  const eventChannel = await first("event-channel", "queue-0/event-channel");
  const ringRef = await first("ring-ref", "ring-ref0", "queue-0/ring-ref", "queue-0/ring-ref0");
  return {
    ...(eventChannel === undefined ? {} : { eventChannel }),
    ...(ringRef === undefined ? {} : { ringRef }),
  };
}

/** Says that the device is to go: the backend unregisters when the frontend has closed. */
export async function takeOffline(store: XenStore, paths: VbdPaths): Promise<void> {
  await store.write(`${paths.backend}/online`, "0");
}

/** Asks both ends to close a device that is to go, as libxl does to unplug it: the frontend closes when it sees the backend
 * do so, unless somebody uses it, and the backend after it. Nothing happens where there is no device any more. */
export async function askToClose(store: XenStore, paths: VbdPaths): Promise<void> {
  await store.transaction(async (operations) => {
    const state = await operations.read(`${paths.backend}/state`);
    if (state === undefined) return;
    await operations.write(`${paths.backend}/online`, "0");
    if (parseState(state) >= XenbusState.closing) return;
    await operations.write(`${paths.backend}/state`, String(XenbusState.closing));
  });
}

/** Removes both directories, after both ends have closed, and what the drivers left of errors. Not as one: a guest that
 * writes into its directory without pause could make a transaction fail for as long. */
export async function removeVbd(store: XenStore, { frontend, backend }: VbdPaths): Promise<void> {
  for (const path of [frontend, errorPath(frontend), backend, errorPath(backend)]) {
    await store.remove(path);
  }
  // The last disk of a guest takes the guest's directories along (libxl__xs_path_cleanup); no guest writes there.
  await store.transaction(async (operations) => {
    for (const path of [backend, errorPath(backend)]) {
      const parent = path.slice(0, path.lastIndexOf("/"));
      if ((await operations.list(parent))?.length === 0) await operations.remove(parent);
    }
  });
}

/** The nodes of a domain itself, as far as drivers and people look at them. `uuid` is that of a guest, which tools look
 * up below /vm; domain 0 and backend domains of ours have none. */
export async function createDomainNodes(
  store: XenStore,
  domid: number,
  name: string,
  uuid?: string,
): Promise<void> {
  await store.transaction(async (operations) => {
    const path = `/local/domain/${domid}`;
    await createDirectory(operations, path, domid);
    await writeAll(operations, path, { name, domid });
    if (uuid !== undefined) {
      const vm = `/vm/${uuid}`;
      await createDirectory(operations, vm, 0, domid);
      await writeAll(operations, vm, { name, uuid });
      await writeAll(operations, path, { vm });
    }
    for (const directory of ["device", "backend", "error"]) {
      await createDirectory(operations, `${path}/${directory}`, domid);
    }
  });
}

async function createDirectory(
  operations: XenStoreOperations,
  path: string,
  owner: number,
  reader?: number,
): Promise<void> {
  await operations.mkdir(path);
  await operations.setPermissions(path, directoryPermissions(owner, reader));
}

function directoryPermissions(owner: number, reader?: number): XenStorePermission[] {
  const permissions: XenStorePermission[] = [{ domid: owner, access: "none" }];
  if (reader !== undefined) permissions.push({ domid: reader, access: "read" });
  return permissions;
}

/** Gives a node and all below it these permissions; nothing happens where there is none, and a node that goes meanwhile
 * needs none. */
async function shareAll(
  store: XenStore,
  path: string,
  permissions: readonly XenStorePermission[],
): Promise<void> {
  const paths = [path];
  for (let next = paths.pop(); next !== undefined; next = paths.pop()) {
    const names = await store.list(next);
    if (names === undefined) continue;
    for (const name of names) paths.push(`${next}/${name}`);
    await store.setPermissions(next, permissions).catch((error: unknown) => {
      if ((error as { code?: unknown }).code !== "ENOENT") throw error;
    });
  }
}

async function writeAll(
  operations: XenStoreOperations,
  path: string,
  nodes: Readonly<Record<string, string | number>>,
): Promise<void> {
  for (const [key, value] of Object.entries(nodes)) {
    await operations.write(`${path}/${key}`, String(value));
  }
}
