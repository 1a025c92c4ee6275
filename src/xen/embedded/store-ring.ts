/**
 * The xenstore ring of an embedded domain, as Xen's domain builder leaves it to a guest (docs/process-link.md): a page
 * behind the reserved grant, a port that is offered to the domain of the xenstore, and two words of the header that name
 * them.
 */
import { PAGE_SIZE, XenError, type XenStore } from "../domain.ts";
import { XenStoreClient } from "../xenstore/client.ts";
import { connectRing } from "../xenstore/ring-guest.ts";
import { GNTTAB_RESERVED_XENSTORE } from "../xenstore/ring-service.ts";
import type { DomainMemory } from "./domain-memory.ts";
import type { EmbeddedEventChannels } from "./event-channels.ts";
import { GTF_permit_access, Header, PORT_COUNT, PortState, portWord } from "./layout.ts";

/** The domain in which the daemon lives: the highest number that a domain can have, so that it is in nobody's way. */
export const STORE_DOMID = 0x7fef;

/** The first that a domain could have. */
const STORE_PORT = 1;

/** Lays out the ring in the memory of a domain that does not run yet; its port. */
export function buildStoreRing(memory: DomainMemory): number {
  // The last page, so that it cuts no run of pages in two.
  const frame = memory.shape.pageCount - 1;
  const { grantWords, ports, header } = memory;
  grantWords[GNTTAB_RESERVED_XENSTORE * 2 + 1] = frame;
  Atomics.store(grantWords, GNTTAB_RESERVED_XENSTORE * 2, (STORE_DOMID << 16) | GTF_permit_access);
  Atomics.store(ports, STORE_PORT, portWord(PortState.unbound, STORE_DOMID, 0));
  Atomics.store(header, Header.storeFrame, frame);
  Atomics.store(header, Header.storePort, STORE_PORT);
  return STORE_PORT;
}

/** Whether the memory has a xenstore ring. */
export function hasStoreRing(memory: DomainMemory): boolean {
  return Atomics.load(memory.header, Header.storeFrame) !== 0;
}

/** The xenstore by the ring in the domain's own memory. Throws XenError("EINVAL") where its header cannot be believed. */
export function openStoreRing(memory: DomainMemory, events: EmbeddedEventChannels): XenStore {
  const frame = Atomics.load(memory.header, Header.storeFrame);
  const port = Atomics.load(memory.header, Header.storePort);
  const { domid, firstFrame, pageCount } = memory.shape;
  if (!(frame >= firstFrame && frame < pageCount && port > 0 && port < PORT_COUNT)) {
    throw new XenError(
      "EINVAL",
      `domain ${domid}: no xenstore ring at page ${frame}, port ${port}`,
    );
  }
  const page = memory.bytes.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE);
  return new XenStoreClient(connectRing({ page, channel: events.adopt(port) }));
}
