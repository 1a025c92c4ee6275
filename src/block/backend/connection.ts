/**
 * The rings of a connected vbd (xen_blkif_map, xen_blkif_disconnect of xen-blkback's xenbus.c).
 *
 * Invariant: either every ring of the offer is mapped and served, or nothing of it is held; `close` gives all back.
 */
import type { BlockStore } from "../../store/block-store.ts";
import type { Clock } from "../../util/clock.ts";
import { blkifLayout } from "../../wire/blkif.ts";
import { ringSize } from "../../wire/shared-ring.ts";
import { type Domain, XenError } from "../../xen/domain.ts";
import type { BackendLimits } from "../features.ts";
import { linuxStatistics, type QueueCounters, sumCounters } from "./counters.ts";
import { Drain } from "./drain.ts";
import type { FrontendOffer, RingOffer } from "./offer.ts";
import { BackendQueue, type Unsupported } from "./queue.ts";
import type { DeviceFacts } from "./request.ts";
import { RingJournal, type RingJournals } from "./ring-journal.ts";

export interface ConnectionOptions {
  readonly domain: Domain;
  readonly clock: Clock;
  readonly peer: number;
  /** Backend directory. */
  readonly path: string;
  readonly store: BlockStore;
  readonly facts: DeviceFacts;
  readonly limits: BackendLimits;
  readonly journals: RingJournals | undefined;
  /** A backend before us was connected to these rings. */
  readonly continued: boolean;
  readonly onhalted: (ring: number) => void;
  readonly onunsupported: (what: Unsupported) => void;
  /** A line of statistics, where the limits ask for it. */
  readonly onstatistics: (line: string) => void;
}

/** Linux's blkback prints as often. */
const STATISTICS_INTERVAL_MILLISECONDS = 10_000;

export class Connection {
  readonly persistent: boolean;
  readonly #options: ConnectionOptions;
  readonly #queues: BackendQueue[] = [];
  readonly #drain = new Drain();
  #statistics: Disposable | undefined = undefined;
  /** Requests of each ring when its statistics were told last. */
  #told: number[] = [];

  /** Maps and serves every ring. Throws XenError. */
  constructor(offer: FrontendOffer, options: ConnectionOptions) {
    this.#options = options;
    this.persistent = offer.persistent && options.limits.persistent;
    try {
      for (const ring of offer.rings) this.#queues.push(this.#openRing(offer, ring));
    } catch (error) {
      // Nothing was taken from a ring yet: they are served from the reactor.
      for (const queue of this.#queues) void queue.close();
      throw error;
    }
    if (options.limits.logStats) this.#tellLater();
  }

  /** One that belongs to another connection is begun anew. */
  #journalOf(offer: FrontendOffer, ring: RingOffer, byteLength: number): RingJournal | undefined {
    const { journals, peer, continued } = this.#options;
    if (journals === undefined) return undefined;
    const slotSize = blkifLayout(offer.protocol).requestSize;
    const size = ringSize(byteLength, slotSize);
    const bytes = journals.open(this.#queues.length, RingJournal.byteLength(size));
    const journal = new RingJournal(bytes, { ...ring, peer, size, slotSize });
    if (!continued) journal.retire();
    return journal;
  }

  #openRing(offer: FrontendOffer, offered: RingOffer): BackendQueue {
    const { references, port } = offered;
    const { domain, peer, clock, path, store, facts, limits } = this.#options;
    const index = this.#queues.length;
    const ring = domain.grants.mapContiguous(peer, references, false);
    if (typeof ring === "number") {
      throw new XenError("EACCES", `mapping ring-ref ${references.join(" ")}: status ${ring}`);
    }
    using undo = new DisposableStack();
    undo.use(ring);
    const channel = undo.use(domain.events.bindInterdomain(peer, port));
    const queue = new BackendQueue({
      domain,
      clock,
      peer,
      path,
      index,
      ring,
      layout: blkifLayout(offer.protocol),
      channel,
      store,
      facts,
      limits,
      persistent: this.persistent,
      drain: this.#drain,
      journal: this.#journalOf(offer, offered, ring.bytes.byteLength),
      onhalted: () => this.#options.onhalted(index),
      onunsupported: this.#options.onunsupported,
    });
    undo.move();
    return queue;
  }

  /** Requests that each ring holds. */
  get slots(): number {
    return this.#queues[0]!.slots;
  }

  get rings(): readonly BackendQueue[] {
    return this.#queues;
  }

  /** The sum over all rings. */
  get counters(): QueueCounters {
    return sumCounters(this.#queues.map((queue) => queue.counters));
  }

  /** Whether no ring is left that could be served. */
  get halted(): boolean {
    return this.#queues.every((queue) => queue.halted);
  }

  #tellLater(): void {
    this.#statistics = this.#options.clock.after(STATISTICS_INTERVAL_MILLISECONDS, () => {
      this.#tell();
      this.#tellLater();
    });
  }

  /** print_stats of blkback.c, for each ring that was used since. */
  #tell(): void {
    for (const [index, queue] of this.#queues.entries()) {
      const { counters } = queue;
      if (counters.requests === (this.#told[index] ?? 0)) continue;
      this.#told[index] = counters.requests;
      const { oo_req, rd_req, wr_req, f_req, ds_req } = linuxStatistics(counters);
      this.#options.onstatistics(
        `ring ${index}: oo ${oo_req} | rd ${rd_req} | wr ${wr_req} | f ${f_req} | ds ${ds_req} | pg ${counters.persistentPages}/${this.#options.limits.maxPersistentGrants}`,
      );
    }
  }

  /** Ends once what is in flight was answered and every page, ring and port was given back. */
  async close(): Promise<void> {
    this.#tellLast();
    // All at once: a barrier on one may wait for another.
    await Promise.all(this.#queues.map((queue) => queue.close()));
  }

  /** As `close`; the frontend hears nothing, and a successor goes on. */
  async leave(): Promise<void> {
    this.#tellLast();
    await Promise.all(this.#queues.map((queue) => queue.leave()));
  }

  #tellLast(): void {
    this.#statistics?.[Symbol.dispose]();
    if (this.#options.limits.logStats) this.#tell();
  }
}
