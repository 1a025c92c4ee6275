/** How much one end of a ring does before it shows the other end what it has done. */
import type { EventChannel } from "../xen/domain.ts";

/** A peer that works at the same time has enough to do with so many, and is not kept waiting for more; each end would
 * sleep while the other works, where all went back and forth together. */
const BATCH = 16;

/** Requests, or responses, of a ring of `slots`. A peer on this thread waits for us in any case. */
export function batchOf(channel: EventChannel, slots: number): number {
  return channel.sharesThread ? slots : Math.min(slots, BATCH);
}
