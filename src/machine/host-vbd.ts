/**
 * A disk of ours in a guest of somebody else's: a domain that another toolstack made, on a real Xen. We play the toolstack
 * for this one device (libxl's device__disk_add and libxl__device_destroy): write its nodes, serve it, take it away.
 *
 * Its nodes lie below backend/vbd3, which no kernel claims. Invariant: what is in the guest's own directory is never asked
 * for a path; the nodes that we made are gone when we are, however it ended.
 */
import { availableParallelism } from "node:os";
import { type BackendEvent, type BackendLimits, BlockBackend } from "../block/index.ts";
import type { BlockStore, EngineChoice, StoreSpec } from "../store/block-store.ts";
import { openStore } from "../store/registry.ts";
import { systemClock } from "../util/clock.ts";
import { type Domain, XenError } from "../xen/domain.ts";
import {
  askToClose,
  createVbd,
  removeVbd,
  type VbdDescription,
  type VbdPaths,
} from "../xen/toolstack.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import { paramsOf } from "./params.ts";

export interface HostVbdOptions {
  /** The guest; it may be the domain that we run in. */
  readonly domid: number;
  /** xvda, xvdb1, sda, 51712 ... */
  readonly vdev: string;
  readonly readOnly?: boolean;
  readonly cdrom?: boolean;
  readonly engine?: EngineChoice;
  readonly backend?: Partial<BackendLimits>;
  readonly ontrace?: (event: BackendEvent) => void;
}

/** A guest that does not close its disk in this time has it taken away, as xl block-detach does. */
const CLOSE_TIMEOUT_MILLISECONDS = 10_000;

export class HostVbd implements AsyncDisposable {
  readonly domid: number;
  /** xvda */
  readonly vdev: string;
  readonly paths: VbdPaths;
  readonly backend: BlockBackend;
  /** The disk itself, which is the backend's. */
  readonly store: BlockStore;
  readonly #domain: Domain;
  #disposal: Promise<void> | undefined = undefined;

  /** Makes the device and serves it; resolves before the guest has connected. Owns a store that is given. Rejects with
   * XenError("ESRCH") where there is no such domain, ("EEXIST") where it has that device, and leaves nothing behind. */
  static async attach(
    domain: Domain,
    disk: BlockStore | StoreSpec,
    options: HostVbdOptions,
  ): Promise<HostVbd> {
    const { domid, readOnly = false, cdrom = false, engine = "auto" } = options;
    const { store, reactor } = domain;
    await using undo = new AsyncDisposableStack();
    if (!("driver" in disk)) undo.use(disk);
    const vbd: VbdDescription = {
      frontendDomid: domid,
      backendDomid: domain.id,
      vdev: parseVdev(options.vdev),
      readOnly,
      params: "driver" in disk ? paramsOf(disk) : "",
      cdrom,
      removable: cdrom,
      kind: "vbd3",
    };
    if ((await store.list(`/local/domain/${domid}`)) === undefined) {
      throw new XenError("ESRCH", `there is no domain ${domid}`);
    }
    const paths = await createVbd(store, vbd);
    undo.defer(() => removeVbd(store, paths));
    const opened =
      "driver" in disk ? undo.use(await openStore(disk, { reactor, readOnly, engine })) : disk;
    const { backend: limits = {}, ontrace } = options;
    const backend = await BlockBackend.open(domain, paths.backend, opened, {
      readOnly,
      limits,
      ...(ontrace === undefined ? {} : { ontrace }),
      cpus: availableParallelism(),
      clock: systemClock,
    });
    undo.move();
    return new HostVbd(domain, vbd, paths, backend, opened);
  }

  private constructor(
    domain: Domain,
    vbd: VbdDescription,
    paths: VbdPaths,
    backend: BlockBackend,
    store: BlockStore,
  ) {
    this.#domain = domain;
    this.domid = vbd.frontendDomid;
    this.vdev = vdevName(vbd.vdev);
    this.paths = paths;
    this.backend = backend;
    this.store = store;
  }

  /** Resolves when the device has gone for good: somebody detached it, or the guest is dead. Dispose it then. */
  get ended(): Promise<void> {
    return this.backend.ended;
  }

  /** Asks the guest to close the disk, and removes the device when it has, or did not for a while. With `force` it is not
   * asked: whatever it has not written yet is lost. */
  detach(options: { readonly force?: boolean } = {}): Promise<void> {
    this.#disposal ??= this.#detach(options.force === true);
    return this.#disposal;
  }

  async #detach(force: boolean): Promise<void> {
    const { store } = this.#domain;
    await using ends = new AsyncDisposableStack();
    ends.defer(() => removeVbd(store, this.paths));
    ends.use(this.backend);
    await askToClose(store, this.paths);
    if (!force) await this.#closed();
  }

  /** Where no frontend is connected there is nobody to wait for. */
  async #closed(): Promise<void> {
    if (this.backend.negotiated === undefined) return;
    const late = Promise.withResolvers<void>();
    using _timer = systemClock.after(CLOSE_TIMEOUT_MILLISECONDS, late.resolve);
    await Promise.race([this.backend.ended, late.promise]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.detach();
  }
}
