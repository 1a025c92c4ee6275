/**
 * What the machine and a backend that lives elsewhere (a worker, a child process) say to one another: plain data, a
 * question with its number and one answer to it. Requests and data never come this way; they cross the ring.
 */
import type {
  BackendEvent,
  BackendLimits,
  LinuxStatistics,
  Negotiated,
  QueueCounters,
} from "../block/index.ts";
import type { BlockStoreInfo, EngineChoice, Extent, StoreSpec } from "../store/block-store.ts";
import type { DomainTicket } from "../xen/embedded/index.ts";
import type { RingIndexes } from "./ring-indexes.ts";

/** The first message to a backend's host. */
export interface BackendSetup {
  readonly ticket: DomainTicket;
  /** Backend directory in the xenstore. */
  readonly path: string;
  readonly spec: StoreSpec;
  readonly readOnly: boolean;
  readonly engine: EngineChoice;
  readonly limits: Partial<BackendLimits>;
}

/** What a backend tells of itself. */
export interface BackendReport {
  /** The store's info, without what cannot be copied. */
  readonly store: StoreFacts;
  readonly negotiated: Negotiated | undefined;
  /** The sum over all rings; undefined between connections. */
  readonly queue: QueueCounters | undefined;
  /** The same by Linux's names. */
  readonly statistics: LinuxStatistics | undefined;
  /** Each ring; empty between connections. */
  readonly rings: readonly RingReport[];
  readonly grants: {
    readonly granted: number;
    readonly mapped: number;
    readonly maps: number;
    readonly unmaps: number;
    readonly copies: number;
  };
  readonly events: { readonly sent: number; readonly delivered: number };
}

/** The report on a backend that is not there, of a disk that a frontend still shows. */
export function emptyReport(info: BlockStoreInfo): BackendReport {
  const { size, readOnly, block, discard, shareable, depth } = info;
  return {
    store: { size, readOnly, block, discard, shareable, depth, engine: undefined },
    negotiated: undefined,
    queue: undefined,
    statistics: undefined,
    rings: [],
    grants: { granted: 0, mapped: 0, maps: 0, unmaps: 0, copies: 0 },
    events: { sent: 0, delivered: 0 },
  };
}

export interface RingReport {
  readonly indexes: RingIndexes;
  readonly queue: QueueCounters;
  readonly statistics: LinuxStatistics;
}

export type StoreFacts = Pick<
  BlockStoreInfo,
  "size" | "readOnly" | "block" | "discard" | "shareable" | "depth"
> & { readonly engine: string | undefined };

export type Question =
  | { readonly ask: "extents"; readonly offset: number; readonly length: number }
  | { readonly ask: "report" }
  | { readonly ask: "resize"; readonly size: number }
  | { readonly ask: "close" };

export type ToBackend = { readonly setup: BackendSetup } | ({ readonly number: number } & Question);

export type FromBackend =
  | { readonly ready: true }
  | { readonly event: BackendEvent }
  /** What the library does without there, as published on the diagnostics channel NOTES. */
  | { readonly note: unknown }
  | { readonly number: number; readonly answer: Extent[] | BackendReport | true }
  | { readonly number: number | undefined; readonly error: { code: string; message: string } };

/** The diagnostics channel of notes for people; one that was published elsewhere is published here again. */
export const NOTES = "vbdkit:note";

/** Extents of one answer: a fragmented image must not make a message without bound; the asker comes again. */
export const MAX_EXTENTS_PER_ANSWER = 4096;

/** A way for messages: a worker's port, or a child process's channel. */
export interface MessageChannelEnd<In, Out> {
  post(message: Out): void;
  onmessage: ((message: In) => void) | undefined;
}
