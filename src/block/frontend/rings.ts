/**
 * The rings that a frontend offers: pages granted to the backend, event channels, and the keys that name both
 * (setup_blkring of xen-blkfront.c, xbd_alloc_ring).
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { FrontRing } from "../../ring/front-ring.ts";
import { blkifLayout } from "../../wire/blkif.ts";
import {
  type Domain,
  type EventChannel,
  type OwnPages,
  PAGE_SIZE,
  XenError,
  type XenStoreOperations,
} from "../../xen/domain.ts";
import { queuePath, ringReferenceKey } from "../../xen/vbd.ts";
import type { FrontendLimits } from "../features.ts";
import type { RingLimits } from "./negotiation.ts";

/** A ring without so many pages for data is not worth its own. */
export const MIN_POOL_PAGES = 32;

/** The pages of a ring, for whoever wants to look at them (or to break them, in a test). */
export interface RingPages {
  readonly region: MemoryRegion;
  readonly start: number;
  readonly bytes: Uint8Array;
}

export interface OfferedRing extends RingPages {
  readonly pages: OwnPages;
  readonly ring: FrontRing;
  readonly channel: EventChannel;
}

export class RingOffer implements Disposable {
  readonly rings: readonly OfferedRing[];
  readonly pageOrder: number;
  readonly limits: RingLimits;

  /** As many rings of as many pages as there is memory for, up to the limits. Throws XenError where there is none. */
  static allocate(
    domain: Domain,
    peer: number,
    limits: RingLimits,
    protocol: FrontendLimits["protocol"],
  ): RingOffer {
    const rings: OfferedRing[] = [];
    let order = limits.pageOrder;
    while (rings.length < limits.queues) {
      try {
        rings.push(allocateRing(domain, peer, order, protocol, rings.length + 1));
      } catch (error) {
        // The rings of a device have one size; those that came first decide it.
        if (rings.length > 0) break;
        if (order-- === 0) throw error;
      }
    }
    return new RingOffer(rings, order, limits);
  }

  private constructor(rings: readonly OfferedRing[], pageOrder: number, limits: RingLimits) {
    this.rings = rings;
    this.pageOrder = pageOrder;
    this.limits = limits;
  }

  /** Requests that all rings together hold. */
  get slots(): number {
    return this.rings.reduce((sum, { ring }) => sum + ring.size, 0);
  }

  /** Writes the keys into our directory, and removes those that an earlier offer left there. */
  async write(operations: XenStoreOperations, path: string): Promise<void> {
    const write = (key: string, value: number) => operations.write(key, String(value));
    for (const name of (await operations.list(path)) ?? []) {
      if (isRingKey(name)) await operations.remove(`${path}/${name}`);
    }
    if (this.pageOrder > 0) {
      await write(`${path}/ring-page-order`, this.pageOrder);
      if (this.limits.oldScheme) await write(`${path}/num-ring-pages`, 1 << this.pageOrder);
    }
    const several = this.rings.length > 1;
    if (several) await write(`${path}/multi-queue-num-queues`, this.rings.length);
    for (const [queue, { pages, channel }] of this.rings.entries()) {
      const directory = several ? queuePath(path, queue) : path;
      for (let page = 0; page < pages.count; page++) {
        const key = ringReferenceKey(this.pageOrder === 0 ? undefined : page);
        await write(`${directory}/${key}`, pages.references[page]!);
      }
      await write(`${directory}/event-channel`, channel.port);
    }
  }

  [Symbol.dispose](): void {
    for (const { pages, channel } of this.rings) {
      channel[Symbol.dispose]();
      pages[Symbol.dispose]();
    }
  }
}

function isRingKey(name: string): boolean {
  return /^(ring-ref\d*|ring-page-order|num-ring-pages|event-channel|queue-\d+|multi-queue-num-queues)$/.test(
    name,
  );
}

function allocateRing(
  domain: Domain,
  peer: number,
  order: number,
  protocol: FrontendLimits["protocol"],
  ringCount: number,
): OfferedRing {
  const pages = domain.grants.allocate(1 << order);
  if (pages === undefined) throw new XenError("ENOMEM", "no memory left for a ring");
  using undo = new DisposableStack();
  undo.use(pages);
  using left = domain.grants.allocate(ringCount * MIN_POOL_PAGES);
  if (left === undefined) throw new XenError("ENOMEM", "no memory left for the pages of requests");
  for (let page = 0; page < pages.count; page++) {
    if (!pages.grant(page, peer, false)) {
      throw new XenError("ENOSPC", "no grant entries left for a ring");
    }
  }
  const channel = domain.events.allocateUnbound(peer);
  undo.move();
  const { region, start } = pages;
  const bytes = region.bytes.subarray(start, start + pages.count * PAGE_SIZE);
  // A ring is initialised before the backend can see it.
  const ring = new FrontRing(bytes, blkifLayout(protocol));
  return { pages, region, start, bytes, ring, channel };
}
