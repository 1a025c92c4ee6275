/** A disk attached to a machine: the promise face of its frontend, and what can be told of both ends. */
import type { BlockFrontend, FrontendCounters, FrontendState, Negotiated } from "../block/index.ts";
import type { StoreSpec } from "../store/block-store.ts";
import { Disk } from "../store/disk.ts";
import { systemClock } from "../util/clock.ts";
import { XenError } from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import { type BackendReport, emptyReport } from "./backend-protocol.ts";
import type { Guest } from "./guest.ts";
import type { InheritedRequest } from "./inherited-requests.ts";
import type { AttachOptions } from "./machine.ts";
import type { RestartableBackend } from "./restartable-backend.ts";
import { type RingIndexes, ringIndexes } from "./ring-indexes.ts";
import { VbdStore } from "./vbd-store.ts";

/** Where a backend lives. */
export type Link = "thread" | "worker" | "process";

/** What `info` shows of an attached disk: read from the ring's pages, the grant tables and both ends' counters. */
export interface AttachmentInformation {
  readonly vdev: string;
  readonly link: Link;
  /** Where it is not "connected", what follows of rings and backend is empty, and `negotiated` is of the last connection. */
  readonly state: FrontendState;
  readonly frontendPath: string;
  readonly backendPath: string;
  readonly negotiated: Negotiated;
  /** The shared indexes, as they stand in the first page of the (first) ring. */
  readonly ring: RingIndexes;
  /** The same of every ring, as the backend sees them. */
  readonly rings: readonly RingIndexes[];
  readonly frontend: FrontendCounters & {
    readonly grants: BackendReport["grants"];
    readonly events: BackendReport["events"];
  };
  readonly backend: BackendReport;
}

/** What a backend is given to close when it was detached by force, and once more when it was killed. */
const FORCED_CLOSE_MILLISECONDS = 1000;

export interface Attachment {
  readonly guest: Guest;
  readonly frontend: BlockFrontend;
  readonly backend: RestartableBackend;
  /** undefined where the disk was given opened. */
  readonly spec: StoreSpec | undefined;
  readonly options: AttachOptions;
  readonly link: Link;
  /** xvda */
  readonly vdev: string;
  readonly paths: VbdPaths;
  /** Asks both ends to close, in the xenstore. */
  readonly askToClose: () => Promise<void>;
  /** Removes the directories of both ends. */
  readonly removeNodes: () => Promise<void>;
  /** Runs after both ends have closed. */
  readonly onclosed: () => Promise<void>;
  readonly inherited: readonly InheritedRequest[];
}

export class AttachedDisk extends Disk {
  readonly vdev: string;
  readonly #attachment: Attachment;
  /** A frontend that somebody uses does not close because its backend wants to: we close it, after what is flushed. */
  #use: Disposable | undefined = undefined;
  #disposal: Promise<void> | undefined = undefined;

  constructor(attachment: Attachment) {
    super(new VbdStore(attachment.frontend, attachment.backend), attachment.guest.domain.reactor);
    this.#attachment = attachment;
    this.vdev = attachment.vdev;
  }

  /** The frontend itself, for whoever wants to look into the ring. */
  get frontend(): BlockFrontend {
    return this.#attachment.frontend;
  }

  /** "away" while a disk that reconnects waits for its backend. */
  get state(): FrontendState {
    return this.frontend.state;
  }

  /** Requests that a saved guest had left unanswered, which are done once more on this disk. */
  get inherited(): readonly InheritedRequest[] {
    return this.#attachment.inherited;
  }

  /** What the disk was attached as. */
  get spec(): StoreSpec | undefined {
    return this.#attachment.spec;
  }

  get options(): AttachOptions {
    return this.#attachment.options;
  }

  /** The directories of both ends in the xenstore. */
  get paths(): VbdPaths {
    return this.#attachment.paths;
  }

  /** Of the domain that has the frontend. */
  get domid(): number {
    return this.#attachment.guest.domid;
  }

  async information(): Promise<AttachmentInformation> {
    const { guest, frontend, backend, link, paths } = this.#attachment;
    const report = await backend.report().catch(() => emptyReport(frontend.info));
    const { granted, mapped, maps, unmaps, copies } = guest.domain.grants.counters;
    const { sent, delivered } = guest.domain.events.counters;
    return {
      vdev: this.vdev,
      link,
      state: frontend.state,
      frontendPath: paths.frontend,
      backendPath: paths.backend,
      negotiated: frontend.negotiated,
      ring: ringIndexes(frontend.rings[0]?.bytes),
      rings: report.rings.map((ring) => ring.indexes),
      frontend: {
        ...frontend.counters,
        grants: { granted, mapped, maps, unmaps, copies },
        events: { sent, delivered },
      },
      backend: report,
    };
  }

  /** New requests wait until the holder lets go; resolves when those before have been carried out: nothing changes the
   * disk then, which may be copied. */
  async freeze(): Promise<Disposable> {
    return await this.frontend.freeze();
  }

  /** Sends nothing until `resume`; see BlockFrontend. */
  async suspend(waitMilliseconds?: number): Promise<void> {
    await this.frontend.suspend(waitMilliseconds);
  }

  /** Goes on: with the rings as they are where `cancelled`, else with new ones, on which what was in flight is sent again.
   * Begins the backend where it was closed meanwhile. */
  async resume(options: { readonly cancelled?: boolean } = {}): Promise<void> {
    const { backend, frontend } = this.#attachment;
    const cancelled = options.cancelled === true && backend.present;
    if (!backend.present) await backend.restart();
    await frontend.resume({ cancelled });
  }

  /** Closes the backend, so that the disk may be opened elsewhere. To be done while the frontend is suspended, or
   * reconnects. Rejects with XenError("EOPNOTSUPP") where the disk was given opened: nobody could open it again. */
  async closeBackend(): Promise<void> {
    this.assertReopens();
    await this.#attachment.backend.close();
  }

  /** Closes the backend and begins it anew: requests wait meanwhile. For a disk that reconnects. Rejects with
   * XenError("EOPNOTSUPP") for one that does not, or that was given opened. */
  async restartBackend(): Promise<void> {
    this.assertReopens();
    if (this.options.reconnect !== true && this.state !== "suspended") {
      const message = `${this.vdev} was not attached to reconnect: it would fail with its backend`;
      throw new XenError("EOPNOTSUPP", message);
    }
    await this.#attachment.backend.restart();
  }

  /** Throws XenError("EOPNOTSUPP") where the disk was given opened. */
  assertReopens(): void {
    if (this.spec !== undefined) return;
    throw new XenError("EOPNOTSUPP", `${this.vdev} was given opened, and cannot be opened again`);
  }

  /** Says in the xenstore that the disk is to go, as a toolstack does before it waits for a guest: offline, and Closing. The
   * disk stays, as one that is in use, until it is disposed. */
  async announceDetach(): Promise<void> {
    this.#use ??= this.frontend.hold();
    await this.#attachment.askToClose();
  }

  /** Takes the disk away from the guest whatever is in flight: requests end with EIO, and a backend in a worker or process
   * that does not close is killed. Resolves, within seconds, with whether the backend has closed its store; one on this
   * thread whose store does not answer closes it when it does, and the vdev is taken until then. */
  async detachByForce(): Promise<boolean> {
    const { frontend, backend, removeNodes } = this.#attachment;
    const closed = this[Symbol.asyncDispose]().then(() => true);
    closed.catch(() => {});
    await frontend.abandon(new XenError("EIO", `${this.vdev} was detached by force`));
    if (await within(closed)) return true;
    backend.kill();
    await removeNodes();
    return await within(closed);
  }

  /** Flushes, closes both ends, and removes the device. A guest that does not run cannot take its leave of the backend: its
   * requests end with ESHUTDOWN. */
  override [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#detach();
    return this.#disposal;
  }

  async #detach(): Promise<void> {
    const { guest, frontend, backend, onclosed } = this.#attachment;
    await using ends = new AsyncDisposableStack();
    ends.defer(onclosed);
    // The promise face, and with it the memory that the frontend lent it.
    ends.defer(() => super[Symbol.asyncDispose]());
    if (guest.state !== "running") {
      ends.defer(() => frontend.abandon(new XenError("ESHUTDOWN", `${this.vdev} was detached`)));
      ends.use(backend);
      return;
    }
    ends.use(backend);
    ends.use(frontend);
    // A xenstore that has ended has nobody to tell.
    await this.announceDetach().catch(() => {});
    // What was written through us is on the disk before anything is taken apart; a disk that cannot, or is not there, is
    // closed anyway.
    if (!this.info.readOnly && this.state === "connected") await this.flush().catch(() => {});
  }
}

/** What it resolves to, or false where that takes too long. */
async function within(closed: Promise<boolean>): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  using _timer = systemClock.after(FORCED_CLOSE_MILLISECONDS, () => late.resolve(false));
  return await Promise.race([closed, late.promise]);
}
