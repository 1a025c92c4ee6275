/**
 * Serves the vbds of some directories of the xenstore as they come and go: what xl devd and tapback are for other disks
 * (libxl_device.c and docs/misc/xenstore-paths for what a toolstack writes, and waits for).
 *
 * Invariants: nothing is served that is not ours by `resolve`; nothing is written below a directory that has gone; one
 * vbd that fails disturbs no other. Ending by `leave` leaves every vbd as it is.
 */
import { availableParallelism } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
// Not by block/index.ts: no frontend is needed here, and whoever waits for this program to start waits for every file.
import { type BackendEvent, BlockBackend } from "../block/backend/backend.ts";
import type { BackendLimits } from "../block/features.ts";
import type { BlockStore, EngineChoice, StoreSpec } from "../store/block-store.ts";
import { openStore, unlockedSpec } from "../store/registry.ts";
import { systemClock } from "../util/clock.ts";
import { type Domain, XenError, type XenStoreOperations } from "../xen/domain.ts";
import { parseState, XenbusState } from "../xen/xenbus.ts";
import { DeviceWatch } from "./device-watch.ts";
import { JournalFiles } from "./journal-files.ts";

/** What a vbd is to be served from. */
export interface DeviceRequest {
  /** As a person wrote it. */
  readonly text: string;
  readonly spec: StoreSpec;
  readonly readOnly: boolean;
  readonly engine: EngineChoice;
  readonly limits: Partial<BackendLimits>;
}

export interface VbdServiceOptions {
  readonly domain: Domain;
  /** Directories that hold those of vbds, and how many levels below: backend/vbd3 and 2, backend/vbd3/DOMID and 1. */
  readonly roots: readonly string[];
  readonly levels: number;
  /** What a vbd is served from, by its backend directory; undefined where it is not ours. What it rejects with is left in
   * the directory, for people. */
  readonly resolve: (path: string) => Promise<DeviceRequest | undefined>;
  /** Folder for journals; without one a vbd does not survive our death by force. */
  readonly journals?: string;
  readonly ontrace: (event: BackendEvent) => void;
}

/** A vbd that is served. */
export interface ServedVbd {
  readonly path: string;
  readonly request: DeviceRequest;
  readonly backend: BlockBackend;
  /** undefined while no frontend is connected. */
  readonly store: BlockStore | undefined;
}

/** A guest that moves is connected here before its old self, which is still locking the image, has ended; libxl takes a
 * moment between the two, and gives up after ten seconds. Milliseconds. */
const LOCK_PATIENCE = 30_000;
const LOCK_INTERVAL = 100;

/** How long a directory stays after its vbd has closed, where the toolstack is in another domain. libxl takes a backend that
 * goes before it has read Closed for one that failed (devstate_callback), and then waits ten seconds. Milliseconds. */
const CLOSED_STAYS = 1000;

/** DOMID/VDEV as toolstacks write them; others are not ours, and two spellings of one number would share their journals. */
const NUMBERS = /\/(0|[1-9]\d{0,4})\/(0|[1-9]\d{0,9})$/;

interface Device {
  readonly path: string;
  readonly journals: JournalFiles | undefined;
  readonly request: DeviceRequest;
  backend: BlockBackend | undefined;
  store: BlockStore | undefined;
  /** Ends waiting for a lock. */
  readonly ending: AbortController;
  /** Its directory was removed. */
  vanished: boolean;
}

export class VbdService {
  readonly #options: VbdServiceOptions;
  readonly #devices = new Map<string, Device>();
  /** Directories of vbds that have ended, or could not be served: not looked at again while they stay. */
  readonly #done = new Set<string>();
  /** Directories that are looked at for the first time; each root has a handler of its own. */
  readonly #beginning = new Set<string>();
  readonly #watches: DeviceWatch[] = [];
  readonly #found: ReadonlySet<string>[];
  #ending = false;

  static async start(options: VbdServiceOptions): Promise<VbdService> {
    const service = new VbdService(options);
    const { store } = options.domain;
    for (const [index, root] of options.roots.entries()) {
      const watch = await DeviceWatch.open({
        ...{ store, root, levels: options.levels },
        onchange: async (paths) => {
          service.#found[index] = paths;
          await service.#update();
        },
        onerror: (error) => service.#trace("failed", `${root}: ${String(error)}`),
      });
      service.#watches.push(watch);
    }
    return service;
  }

  private constructor(options: VbdServiceOptions) {
    this.#options = options;
    this.#found = options.roots.map(() => new Set<string>());
  }

  get vbds(): readonly ServedVbd[] {
    return [...this.#devices.values()].flatMap(({ path, request, backend, store }) =>
      backend === undefined ? [] : [{ path, request, backend, store: backend.negotiated && store }],
    );
  }

  #trace(kind: BackendEvent["kind"], message: string): void {
    this.#options.ontrace({ kind, message });
  }

  async #update(): Promise<void> {
    const paths = new Set(this.#found.flatMap((found) => [...found]));
    for (const path of this.#done) if (!paths.has(path)) this.#done.delete(path);
    for (const device of this.#devices.values()) {
      if (!paths.has(device.path)) this.#vanish(device);
      else await this.#look(device);
    }
    for (const path of paths) {
      if (this.#ending || this.#devices.has(path) || this.#beginning.has(path)) continue;
      this.#beginning.add(path);
      try {
        if (this.#done.has(path) && !(await this.#isMadeAnew(path))) {
          await this.#closeRefused(path);
          continue;
        }
        this.#done.delete(path);
        await this.#begin(path);
      } catch (error) {
        await this.#refuse(path, error);
      } finally {
        this.#beginning.delete(path);
      }
    }
  }

  /** A toolstack removed the directory and made it again, and we saw neither: what we left there is gone. */
  async #isMadeAnew(path: string): Promise<boolean> {
    const { store } = this.#options.domain;
    if (parseState(await store.read(`${path}/state`)) !== XenbusState.initialising) return false;
    return (await store.read(`${path}/hotplug-error`)) === undefined;
  }

  async #begin(path: string): Promise<void> {
    const { domain, journals, ontrace, resolve } = this.#options;
    const [, domid, vdev] = NUMBERS.exec(path) ?? [];
    if (vdev === undefined) return;
    const request = await resolve(path);
    if (request === undefined) return;
    await this.#probe(request);
    if (this.#ending) return;
    const device: Device = {
      path,
      request,
      journals:
        journals === undefined
          ? undefined
          : new JournalFiles(journals, Number(domid), Number(vdev)),
      backend: undefined,
      store: undefined,
      ending: new AbortController(),
      vanished: false,
    };
    this.#devices.set(path, device);
    try {
      const backend = await BlockBackend.open(domain, path, () => this.#open(device), {
        readOnly: request.readOnly,
        limits: request.limits,
        cpus: availableParallelism(),
        clock: systemClock,
        ...(device.journals === undefined ? {} : { journals: device.journals }),
        ontrace,
      });
      device.backend = backend;
      if (device.vanished) this.#leave(device, backend);
      else void backend.ended.then(() => this.#ended(device));
    } catch (error) {
      this.#devices.delete(path);
      device.journals?.remove();
      throw error;
    }
  }

  /** That there is such a disk is said now, to whoever makes the vbd, and not only to the guest that connects later. Its
   * lock may be another's until then. */
  async #probe({ spec, engine }: DeviceRequest): Promise<void> {
    const { reactor } = this.#options.domain;
    const store = await openStore(unlockedSpec(spec) ?? spec, { reactor, readOnly: true, engine });
    await store[Symbol.asyncDispose]();
  }

  /** Opens the disk for a frontend that connects; waits where another holds its lock. */
  async #open(device: Device): Promise<BlockStore> {
    const { spec, readOnly, engine, text } = device.request;
    const { reactor } = this.#options.domain;
    const patience = performance.now() + LOCK_PATIENCE;
    for (let told = false; ; ) {
      device.ending.signal.throwIfAborted();
      try {
        const store = await openStore(spec, { reactor, readOnly, engine });
        device.store = store;
        return store;
      } catch (error) {
        const busy = (error as { code?: unknown }).code === "EBUSY";
        if (!busy || performance.now() > patience) throw error;
        if (!told) this.#trace("state", `${device.path}: ${text} is locked: waiting`);
        told = true;
        await sleep(LOCK_INTERVAL);
      }
    }
  }

  /** Whether the vbd is still the one that we serve, and wanted. */
  async #look(device: Device): Promise<void> {
    const { backend, path } = device;
    if (backend === undefined || device.vanished) return;
    if (await this.#isMadeAnew(path)) this.#vanish(device);
    else if (backend.negotiated === undefined) await this.#closeUnwanted(device, backend);
  }

  /** The toolstack is done with a vbd that no frontend uses: nobody else will close it. */
  async #closeUnwanted({ path, ending }: Device, backend: BlockBackend): Promise<void> {
    if (!(await isOffline(this.#options.domain.store, path))) return;
    ending.abort(new XenError("ESHUTDOWN", `${path} was taken offline`));
    this.#apart(path, backend[Symbol.asyncDispose]());
  }

  /** The toolstack wants to be rid of a vbd that could not be served, and waits for it to close. */
  async #closeRefused(path: string): Promise<void> {
    const closed = await this.#options.domain.store.transaction(async (operations) => {
      const state = await operations.read(`${path}/state`);
      if (state === undefined || parseState(state) === XenbusState.closed) return false;
      if (!(await isOffline(operations, path))) return false;
      await operations.write(`${path}/state`, String(XenbusState.closed));
      return true;
    });
    if (closed) this.#apart(path, this.#clear(path));
  }

  /** A disk that hangs holds up nobody else. */
  #apart(path: string, work: Promise<void>): void {
    void work.catch((error: unknown) => this.#trace("failed", `${path}: ${String(error)}`));
  }

  /** Its directory was removed under us: nothing is written any more. */
  #vanish(device: Device): void {
    if (device.vanished) return;
    device.vanished = true;
    device.ending.abort(new XenError("ESHUTDOWN", `${device.path} was removed`));
    if (device.backend !== undefined) this.#leave(device, device.backend);
  }

  #leave(device: Device, backend: BlockBackend): void {
    const left = backend.leave().finally(() => {
      this.#forget(device);
      // Another may have come in its place.
      for (const watch of this.#watches) watch.poke();
    });
    this.#apart(device.path, left);
  }

  /** The device has gone for good. */
  #ended(device: Device): void {
    if (this.#ending || device.vanished) return;
    void this.#finish(device).catch((error: unknown) => this.#refuse(device.path, error));
  }

  async #finish(device: Device): Promise<void> {
    await device.backend?.[Symbol.asyncDispose]();
    this.#forget(device);
    this.#done.add(device.path);
    await this.#clear(device.path);
  }

  /** Removes what has closed, where no toolstack is in this domain to do it. The directory above, which is the toolstack's,
   * stays. */
  async #clear(path: string): Promise<void> {
    const { id, store } = this.#options.domain;
    if (id === 0) return;
    await sleep(CLOSED_STAYS, undefined, { ref: false });
    if (this.#ending || !this.#done.has(path)) return;
    await store.transaction(async (operations) => {
      // The toolstack may have made it anew.
      const state = parseState(await operations.read(`${path}/state`));
      if (state === XenbusState.closed) await operations.remove(path);
    });
  }

  #forget(device: Device): void {
    this.#devices.delete(device.path);
    device.store = undefined;
    device.journals?.remove();
  }

  /** Leaves the reason where hotplug scripts do (libxl_linux.c), and looks at the directory no more. The state says that
   * we are there, for else libxl would wait in vain: then it runs the script, which fails, and tells people the reason. For
   * a backend of another domain it runs none, and takes that state for success. */
  async #refuse(path: string, error: unknown): Promise<void> {
    this.#done.add(path);
    const message = error instanceof Error ? error.message : String(error);
    this.#trace("failed", `${path}: ${message}`);
    const { id, store } = this.#options.domain;
    try {
      await store.transaction(async (operations) => {
        const state = await operations.read(`${path}/state`);
        if (state === undefined) return;
        await operations.write(`${path}/hotplug-error`, message);
        await operations.write(`${path}/hotplug-status`, "error");
        if (id !== 0 || parseState(state) !== XenbusState.initialising) return;
        await operations.write(`${path}/state`, String(XenbusState.initWait));
      });
    } catch (reason) {
      this.#trace("failed", `${path}: ${String(reason)}`);
    }
  }

  /** Finishes what was taken and leaves every vbd as it is, for a successor. */
  async leave(): Promise<void> {
    this.#ending = true;
    const { store } = this.#options.domain;
    for (const watch of this.#watches) await watch[Symbol.asyncDispose]();
    await Promise.all(
      [...this.#devices.values()].map(async (device) => {
        device.ending.abort(new XenError("ESHUTDOWN", "the daemon ends"));
        await device.backend?.leave();
        // A guest's process is ended when the last of its vbds has gone: nobody goes on with that one.
        const there = await store.read(device.path).catch(() => "");
        if (there === undefined) device.journals?.remove();
        else device.journals?.[Symbol.dispose]();
      }),
    );
    this.#devices.clear();
  }
}

/** The toolstack is done with the vbd, and has said so: that the node is missing (readFlag would take it for that) says
 * nothing of a directory that is written node by node. */
async function isOffline(operations: XenStoreOperations, path: string): Promise<boolean> {
  const online = (await operations.read(`${path}/online`))?.trim();
  return online !== undefined && online !== "1";
}
