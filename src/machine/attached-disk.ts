/** A disk attached to a machine: the promise face of its frontend, and what can be told of both ends. */
import type { BlockFrontend, FrontendCounters, Negotiated } from "../block/index.ts";
import { Disk } from "../store/disk.ts";
import type { Domain } from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import type { BackendLink } from "./backend-link.ts";
import type { BackendReport } from "./backend-protocol.ts";
import { type RingIndexes, ringIndexes } from "./ring-indexes.ts";
import { VbdStore } from "./vbd-store.ts";

/** Where a backend lives. */
export type Link = "thread" | "worker" | "process";

/** What `info` shows of an attached disk: read from the ring's pages, the grant tables and both ends' counters. */
export interface AttachmentInformation {
  readonly vdev: string;
  readonly link: Link;
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

export interface Attachment {
  readonly domain: Domain;
  readonly frontend: BlockFrontend;
  readonly backend: BackendLink;
  readonly link: Link;
  /** xvda */
  readonly vdev: string;
  readonly paths: VbdPaths;
  /** Runs after both ends have closed. */
  readonly onclosed: () => Promise<void>;
}

export class AttachedDisk extends Disk {
  readonly vdev: string;
  readonly #attachment: Attachment;
  #disposal: Promise<void> | undefined = undefined;

  constructor(attachment: Attachment) {
    super(new VbdStore(attachment.frontend, attachment.backend), attachment.domain.reactor);
    this.#attachment = attachment;
    this.vdev = attachment.vdev;
  }

  /** The frontend itself, for whoever wants to look into the ring. */
  get frontend(): BlockFrontend {
    return this.#attachment.frontend;
  }

  async information(): Promise<AttachmentInformation> {
    const { domain, frontend, backend, link, paths } = this.#attachment;
    const report = await backend.report();
    const { granted, mapped, maps, unmaps, copies } = domain.grants.counters;
    const { sent, delivered } = domain.events.counters;
    return {
      vdev: this.vdev,
      link,
      frontendPath: paths.frontend,
      backendPath: paths.backend,
      negotiated: frontend.negotiated,
      ring: ringIndexes(frontend.ring.bytes),
      rings: report.rings.map((ring) => ring.indexes),
      frontend: {
        ...frontend.counters,
        grants: { granted, mapped, maps, unmaps, copies },
        events: { sent, delivered },
      },
      backend: report,
    };
  }

  /** Flushes, closes both ends, and removes the device. */
  override [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#detach();
    return this.#disposal;
  }

  async #detach(): Promise<void> {
    const { frontend, backend, onclosed } = this.#attachment;
    await using ends = new AsyncDisposableStack();
    ends.defer(onclosed);
    ends.use(backend);
    ends.use(frontend);
    // What was written through us is on the disk before anything is taken apart; a disk that cannot is closed anyway.
    if (!this.info.readOnly) await this.flush().catch(() => {});
  }
}
