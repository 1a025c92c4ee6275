/** One command slot of a client's connection, and what a reply to it may look like. */
import type { BlockRequest } from "../store/block-store.ts";
import type { StoreError } from "../store/errors.ts";
import {
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
} from "../wire/nbd.ts";

/** A question for extents; answered with context id and extents as they lie on the wire, or with an error. */
export interface StatusQuery {
  readonly offset: number;
  readonly length: number;
  answered(payload: Uint8Array): void;
  failed(error: StoreError): void;
}

/** Pooled: its slot is the low half of its cookie. */
export class ClientCommand {
  next: ClientCommand | undefined = undefined;
  readonly index: number;
  request: BlockRequest | undefined = undefined;
  query: StatusQuery | undefined = undefined;
  type = 0;
  inFlight = false;
  /** High half of the cookie: a reply to an earlier use of this slot is recognised. */
  generation = 0;
  length = 0;
  /** Errno of the reply so far. */
  status = 0;
  /** Bytes of a read that came, and where the next are expected if they come in order. */
  received = 0;
  expected = 0;
  sentMark = 0;

  constructor(index: number) {
    this.index = index;
  }
}

/** Bytes that every chunk of a type starts its payload with; -1 for a type that a client cannot understand. */
export function fixedLength(type: number): number {
  if ((type & NBD_REPLY_TYPE_ERROR_BIT) !== 0) return 6;
  switch (type) {
    case NBD_REPLY_TYPE_NONE:
    case NBD_REPLY_TYPE_BLOCK_STATUS:
      return 0;
    case NBD_REPLY_TYPE_OFFSET_DATA:
      return 8;
    case NBD_REPLY_TYPE_OFFSET_HOLE:
      return 12;
    default:
      return -1;
  }
}
