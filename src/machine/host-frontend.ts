/**
 * A disk of somebody else's in a program of ours: our frontend, in the domain that we run in, on a real backend (Linux's
 * blkback, QEMU, a driver domain, vbdkit's own daemon).
 *
 * The device is one that a toolstack made and no driver took, or one that we make, where we may play the toolstack; that one
 * lies below device/vbdkit, which no kernel looks at. Invariant: a device that somebody has is not taken from him unless
 * asked for; what we made is gone when we are, however it ended.
 */
import { existsSync } from "node:fs";
import { BlockFrontend, type FrontendLimits } from "../block/index.ts";
import { systemClock } from "../util/clock.ts";
import { type Domain, XenError, type XenStore } from "../xen/domain.ts";
import {
  createVbd,
  removeVbd,
  takeOffline,
  type VbdDescription,
  type VbdPaths,
} from "../xen/toolstack.ts";
import { frontendKinds, frontendPath, parseVdev, vdevName } from "../xen/vbd.ts";
import { parseState, stateName, XenbusState } from "../xen/xenbus.ts";
import { type ForeignDisk, foreignBackend } from "./foreign-backend.ts";

export interface HostFrontendOptions {
  readonly limits?: Partial<FrontendLimits>;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
}

/** A device that is to be made. */
export interface NewHostVbd extends ForeignDisk {
  /** xvda, xvdb1, sda, 51712 ... */
  readonly vdev: string;
  /** The domain that serves it. Ours if absent. */
  readonly backendDomid?: number;
  readonly readOnly?: boolean;
  readonly discard?: boolean;
}

/** A backend may have to start first, and a hotplug script to run; libxl is as patient with the two together. */
const CONNECT_TIMEOUT_MILLISECONDS = 20_000;
/** There where the kernel has a frontend of its own. */
const KERNEL_FRONTEND = "/sys/bus/xen/drivers/vbd";

export class HostFrontend implements AsyncDisposable {
  /** The disk. */
  readonly store: BlockFrontend;
  readonly paths: VbdPaths;
  readonly #domain: Domain;
  readonly #made: boolean;
  #disposal: Promise<void> | undefined = undefined;

  /** Connects to a device that is there: a vdev of this domain, or the directory of one. `force` takes it from a driver that
   * was killed. Rejects with XenError("ENOENT") where there is none, ("EBUSY") where a driver has it, ("ETIMEDOUT") where
   * no backend answers. */
  static async open(
    domain: Domain,
    device: string,
    options: HostFrontendOptions & { readonly force?: boolean } = {},
  ): Promise<HostFrontend> {
    const { store } = domain;
    const frontend = await findDevice(domain, device);
    const state = parseState(await store.read(`${frontend}/state`));
    const free = state <= XenbusState.initialising || state === XenbusState.closed;
    if (!free && options.force !== true) {
      throw new XenError(
        "EBUSY",
        `${frontend} is ${stateName(state)}: the kernel's blkfront has it, or another program`,
      );
    }
    const backend = (await store.read(`${frontend}/backend`)) ?? "";
    const paths = { frontend, backend };
    return new HostFrontend(domain, paths, false, await connect(domain, paths, options));
  }

  /** Makes the device and connects to it. Only the toolstack's domain may. Rejects as `open`, with XenError("EEXIST") where
   * the vdev is taken and with what a backend says, and leaves nothing behind. */
  static async make(
    domain: Domain,
    disk: NewHostVbd,
    options: HostFrontendOptions = {},
  ): Promise<HostFrontend> {
    const { store, id } = domain;
    const { backendDomid = id, readOnly = false, discard = true } = disk;
    const vbd: VbdDescription = {
      frontendDomid: id,
      backendDomid,
      vdev: parseVdev(disk.vdev),
      readOnly,
      discard,
      ...foreignBackend(disk, backendDomid === id),
    };
    if (vbd.frontendKind === undefined && existsSync(KERNEL_FRONTEND)) {
      throw new XenError(
        "EBUSY",
        "QEMU serves what is below device/vbd alone, and this kernel's blkfront takes that: modprobe -r xen-blkfront",
      );
    }
    const paths = await create(store, vbd);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => removeVbd(store, paths));
    const connected = await connect(domain, paths, options);
    undo.move();
    return new HostFrontend(domain, paths, true, connected);
  }

  private constructor(domain: Domain, paths: VbdPaths, made: boolean, store: BlockFrontend) {
    this.#domain = domain;
    this.paths = paths;
    this.#made = made;
    this.store = store;
  }

  /** Lets requests in flight end, closes the device with its backend, and removes it if we made it. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  async #dispose(): Promise<void> {
    const { store } = this.#domain;
    await using ends = new AsyncDisposableStack();
    if (this.#made) ends.defer(() => removeVbd(store, this.paths));
    ends.use(this.store);
    // A backend that sees us close then goes for good.
    if (this.#made) await takeOffline(store, this.paths);
  }
}

async function create(store: XenStore, vbd: VbdDescription): Promise<VbdPaths> {
  try {
    return await createVbd(store, vbd);
  } catch (error) {
    if ((error as XenError).code !== "EACCES") throw error;
    const why = "only the toolstack's domain may make a device; connect to one that is there";
    throw new XenError("EACCES", why, { cause: error });
  }
}

/** The directory that a person means. */
async function findDevice({ store, id }: Domain, device: string): Promise<string> {
  const home = `/local/domain/${id}/`;
  if (device.includes("/")) {
    const path = device.startsWith("/") ? device : `${home}${device}`;
    if ((await store.read(`${path}/backend`)) !== undefined) return path;
    throw new XenError("ENOENT", `${path} is no device's directory`);
  }
  const vdev = parseVdev(device);
  for (const kind of frontendKinds) {
    const path = frontendPath(id, vdev, kind);
    if ((await store.read(`${path}/backend`)) !== undefined) return path;
  }
  const names: string[] = [];
  for (const kind of frontendKinds) {
    for (const name of (await store.list(`${home}device/${kind}`)) ?? []) {
      names.push(vdevName(Number(name)));
    }
  }
  const others = names.length === 0 ? "it has none" : `there is ${names.join(", ")}`;
  throw new XenError("ENOENT", `this domain has no device ${vdevName(vdev)}; ${others}`);
}

async function connect(
  domain: Domain,
  { frontend, backend }: VbdPaths,
  { limits = {}, signal }: HostFrontendOptions,
): Promise<BlockFrontend> {
  const hopeless = new AbortController();
  using _timer = systemClock.after(CONNECT_TIMEOUT_MILLISECONDS, () => {
    hopeless.abort(new XenError("ETIMEDOUT", `${backend} does not connect${hintFor(backend)}`));
  });
  // A script or a daemon that failed leaves the backend in the state in which it is.
  const status = `${backend}/hotplug-status`;
  await using _watch = await domain.store.watch(status, () => {
    void domain.store.read(status).then((text) => {
      if (text !== "error") return;
      hopeless.abort(new XenError("EIO", `${backend} cannot be served`));
    }, ignored);
  });
  const signals = signal === undefined ? [hopeless.signal] : [hopeless.signal, signal];
  try {
    return await BlockFrontend.connect(domain, frontend, {
      limits,
      clock: systemClock,
      signal: AbortSignal.any(signals),
    });
  } catch (error) {
    throw await explained(domain, backend, error);
  }
}

/** A directory that goes, or that we may not read, is told of by the frontend. */
function ignored(): void {}

/** Who would have to serve it. */
function hintFor(backend: string): string {
  if (backend.includes("/backend/vbd/")) return ": is xen-blkback loaded in its domain?";
  if (backend.includes("/backend/qdisk/")) return ": does QEMU run for its domain (xencommons)?";
  return backend.includes("/backend/vbd3/") ? ": does vbdkit daemon run?" : "";
}

/** With what the backend wrote of it, or what can be done. */
async function explained(domain: Domain, backend: string, error: unknown): Promise<unknown> {
  const { code, message } = error as XenError;
  if (code === "ENOMEM" || code === "ENOSPC") {
    if (domain.grants.grantsPages) return error;
    return new XenError(
      code,
      `${message}: gntalloc grants few pages to all programs together; raise ` +
        "/sys/module/xen_gntalloc/parameters/limit, or end another one",
      { cause: error },
    );
  }
  for (const node of ["error", "hotplug-error"]) {
    const text = await domain.store.read(`${backend}/${node}`).catch(() => undefined);
    if (text !== undefined && !message.includes(text)) {
      return new XenError(code ?? "EIO", `${message}: ${text}`, { cause: error });
    }
  }
  return error;
}
