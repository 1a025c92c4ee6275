/** The end of a request, whoever of the frontend ends it. */
import type { BlockRequest } from "../../store/block-store.ts";

/** Bits of BlockRequest.flags that are ours while we have the request; no RequestFlag comes near them. */
/** An ordered write: after all that was submitted before it, before all that is submitted later. */
export const ORDERED: number = 1 << 30;
/** The backend keeps the order of an ordered write: it is sent as a barrier. */
export const BARRIER: number = 1 << 29;
/** A command carries no other request with this one: together they failed. */
export const ALONE: number = 1 << 28;

/** Gives a request back to its owner; the first error stays. */
export function complete(request: BlockRequest, errno: number = 0): void {
  request.flags &= ~(ORDERED | BARRIER | ALONE);
  request.status ||= errno;
  request.owner.completed(request);
}
