/**
 * The header of a shared ring, as DEFINE_RING_TYPES of <xen/io/ring.h> lays it out: four free-running 32-bit indexes,
 * then slots that hold a request and later its response. Offsets are 32-bit words.
 */

/** Bytes of a page of a ring, on every architecture. */
export const RING_PAGE_SIZE = 4096;
/** Linux takes no more (XENBUS_MAX_RING_GRANT_ORDER 4), and 16 pages give 512 requests in flight. */
export const MAX_RING_PAGES = 16;

/** Requests that the frontend has published. */
export const REQ_PROD = 0;
/** The request whose publication must be notified. */
export const REQ_EVENT = 1;
/** Responses that the backend has published. */
export const RSP_PROD = 2;
/** The response whose publication must be notified. */
export const RSP_EVENT = 3;
/** Where slot 0 begins; the words in between are private padding, zero. */
export const RING_HEADER_WORDS = 16;

/** Slots of a ring (__RING_SIZE): as many as fit, rounded down to a power of two. Sizes are bytes. */
export function ringSize(ringBytes: number, slotSize: number): number {
  const slots = Math.floor((ringBytes - RING_HEADER_WORDS * 4) / slotSize);
  return 1 << (31 - Math.clz32(slots));
}
