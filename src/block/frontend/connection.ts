/** A connected device: its rings at work, their pages, and what both sides agreed on. It lasts until the backend goes,
 * or the domain is resumed; the frontend has one after the other. */
import type { BlockStoreInfo, NativeFeature } from "../../store/block-store.ts";
import type { Clock } from "../../util/clock.ts";
import { BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../../wire/blkif.ts";
import { type Domain, PAGE_SIZE, XenError } from "../../xen/domain.ts";
import {
  dialects,
  type FrontendLimits,
  type Negotiated,
  segmentsFor,
  unitBytes,
} from "../features.ts";
import type { ClientMemory } from "./client-memory.ts";
import type { FrontendCounters } from "./counters.ts";
import { type Device, SECTOR_SIZE } from "./negotiation.ts";
import { PagePool } from "./page-pool.ts";
import { FrontendQueue, type QueueOwner } from "./queue.ts";
import { MIN_POOL_PAGES, type RingOffer } from "./rings.ts";
import type { QueueFeatures } from "./slot-writer.ts";

/** The longest request taken; it is cut into as many as the ring needs. NBD's customary maximum. */
export const MAX_REQUEST_BYTES: number = 32 << 20;

export interface ConnectionOptions {
  readonly domain: Domain;
  readonly clock: Clock;
  readonly peer: number;
  readonly offer: RingOffer;
  readonly device: Device;
  readonly limits: FrontendLimits;
  readonly trusted: boolean;
  readonly vdev: number;
  readonly clientMemory: ClientMemory;
  readonly counters: FrontendCounters;
  readonly owner: QueueOwner;
}

export class Connection implements Disposable {
  readonly offer: RingOffer;
  readonly device: Device;
  readonly queues: readonly FrontendQueue[];
  readonly features: QueueFeatures;
  readonly persistent: boolean;
  readonly #protocol: string;
  readonly #pools: readonly PagePool[];
  /** For data in flight, of all rings. */
  readonly #dataPages: number;

  /** Throws XenError("ENOMEM") where not even a few pages are left for each ring. */
  constructor(options: ConnectionOptions) {
    const { offer, device, limits } = options;
    this.offer = offer;
    this.device = device;
    this.persistent = limits.persistent && device.persistent;
    this.#protocol = protocolKey(limits.protocol);
    this.features = featuresOf(options);
    const data = dataPools(options, this.persistent);
    using undo = new DisposableStack();
    for (const pool of data) undo.use(pool);
    this.#dataPages = data.reduce((sum, pool) => sum + pool.count, 0);
    const pools = [...data];
    // Without persistent grants a backend expects to see a page for one request; one that is not trusted sees no page of
    // which it needs a part.
    const clientMemory = this.persistent && options.trusted ? options.clientMemory : undefined;
    this.queues = offer.rings.map(({ ring, channel }, i) => {
      const indirectPool = this.#indirectPool(options, data[i]!, ring.size);
      if (indirectPool !== undefined) pools.push(undo.use(indirectPool));
      return new FrontendQueue({
        ...options,
        ring,
        channel,
        pool: data[i]!,
        indirectPool,
        clientMemory,
        features: this.features,
      });
    });
    undo.move();
    this.#pools = pools;
  }

  /** As many pages as indirect requests find pages for at once. */
  #indirectPool(options: ConnectionOptions, data: PagePool, slots: number): PagePool | undefined {
    if (this.features.maxSegments <= segmentsFor(0)) return undefined;
    const { domain, peer, clock } = options;
    const wanted = Math.min(slots, Math.ceil(data.count / (BLKIF_MAX_SEGMENTS_PER_REQUEST + 1)));
    const { persistent } = this;
    return PagePool.create({ domain, peer, clock, wanted, minimum: 1, persistent, keep: true });
  }

  /** As it is now: a backend may take back what it offered. */
  get negotiated(): Negotiated {
    const { offer, device, features } = this;
    return {
      protocol: this.#protocol,
      ringPages: 1 << offer.pageOrder,
      ringSlots: offer.rings[0]!.ring.size,
      queues: offer.rings.length,
      maxSegments: features.maxSegments,
      indirect: features.maxSegments > segmentsFor(0),
      persistent: this.persistent,
      flush: features.flush,
      barrier: features.barrier,
      discard: features.discard,
      sectorSize: device.sectorSize,
      physicalSectorSize: device.physicalSectorSize,
      readOnly: device.readOnly,
      sectors: device.size / SECTOR_SIZE,
    };
  }

  get info(): BlockStoreInfo {
    const { device, features, offer } = this;
    return {
      size: device.size,
      readOnly: device.readOnly,
      block: {
        minimum: device.sectorSize,
        preferred: Math.max(device.physicalSectorSize, PAGE_SIZE),
        maximum: MAX_REQUEST_BYTES,
      },
      discard: features.discard ? device.discard : undefined,
      native: new Set<NativeFeature>(["flush"]),
      shareable: false,
      // Each request takes a page at least, and a host has few.
      depth: Math.min(offer.slots, this.#dataPages),
      engine: "blkfront",
    };
  }

  /** Pages that the backend kept when we wanted them back. */
  get quarantinedPages(): number {
    return this.#pools.reduce((sum, pool) => sum + pool.quarantined, 0);
  }

  /** Takes every page back that can be had. Requests are to have ended, or to be elsewhere. */
  [Symbol.dispose](): void {
    for (const queue of this.queues) queue[Symbol.dispose]();
    for (const pool of this.#pools) pool[Symbol.dispose]();
    this.offer[Symbol.dispose]();
  }
}

/** One pool for each ring, all of one size: as large as there is memory for. */
function dataPools(options: ConnectionOptions, persistent: boolean): PagePool[] {
  const { domain, peer, clock, offer, limits } = options;
  const { length } = offer.rings;
  for (let wanted = Math.ceil(limits.maxPoolPages / length); ; wanted = Math.ceil(wanted / 2)) {
    const minimum = Math.max(wanted, MIN_POOL_PAGES);
    using undo = new DisposableStack();
    const pools: PagePool[] = [];
    while (pools.length < length) {
      const pool = PagePool.create({ domain, peer, clock, wanted, minimum, persistent });
      if (pool === undefined) break;
      pools.push(undo.use(pool));
    }
    if (pools.length === length) {
      undo.move();
      return pools;
    }
    if (wanted <= MIN_POOL_PAGES) {
      throw new XenError("ENOMEM", "no memory left for the pages of requests");
    }
  }
}

function featuresOf({ offer, device, limits, trusted }: ConnectionOptions): QueueFeatures {
  const units = dialects[limits.dialect];
  return {
    maxSegments: offer.limits.maxSegments,
    flush: device.flush,
    barrier: device.barrier,
    flushPromised: device.flush || device.barrier,
    discard: device.discard !== undefined,
    discardSecure: device.discard?.secure === true,
    discardZeroes: device.discard?.zeroes === true,
    sectorSize: device.sectorSize,
    numberUnit: unitBytes(units.sectorNumber, device.sectorSize),
    segmentUnit: unitBytes(units.segments, device.sectorSize),
    trusted,
  };
}

/** The text of the protocol key: native is what this machine's own headers mean. */
export function protocolKey(protocol: FrontendLimits["protocol"]): string {
  if (protocol !== "native") return protocol;
  return process.arch === "arm64" || process.arch === "arm" ? "arm-abi" : "x86_64-abi";
}
