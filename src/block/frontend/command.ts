/** One request of ours to the backend (FreeBSD's struct xbd_command, Linux's blk_shadow): a ring slot's worth of a
 * caller's request, or several whole ones that lie side by side on the disk. Its id on the ring is its index, so a
 * response names it without a search. */
import type { BlockRequest } from "../../store/block-store.ts";

export const CommandState = { free: 0, busy: 1 } as const;
export type CommandState = (typeof CommandState)[keyof typeof CommandState];

export class Command {
  next: Command | undefined = undefined;
  readonly id: number;
  state: CommandState = CommandState.free;
  /** When it was sent, among the commands of its ring: what is in flight is sent again in this order. */
  sequence = 0;
  /** Operation on the ring; for an indirect request the inner one, which the response must carry. */
  operation = 0;
  /** The caller's request that this is a piece of; the first where it carries several. */
  request: BlockRequest | undefined = undefined;
  /** The last that it carries: the others are linked from the first on. The same as `request` where that is one. */
  last: BlockRequest | undefined = undefined;
  /** Byte of the (first) request's data where this piece begins. */
  byte = 0;
  /** Bytes of this piece, or of all requests together. */
  length = 0;
  /** The data is copied through pages of the pool; else the backend has the client's own. */
  copied = true;
  /** Lent by the page pool, where data is copied; the first `pageCount` count. */
  readonly pages: Uint32Array;
  pageCount = 0;
  /** The page that holds the segments of an indirect request, in element 0 as the pool of such pages wants it. */
  readonly indirectPage: Uint32Array = new Uint32Array(1);
  indirect = false;

  constructor(id: number, maxPages: number) {
    this.id = id;
    this.pages = new Uint32Array(maxPages);
  }
}
