/**
 * One command slot of a server's connection: pooled, with room for its reply's header, so that a request allocates
 * nothing. And the rules a request must keep before a store sees it.
 */
import { SegmentList } from "../io/memory.ts";
import { BlockRequest, Operation, RequestFlag, type RequestOwner } from "../store/block-store.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EPERM,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_TRIM,
  NBD_MAX_PAYLOAD,
  type NbdRequest,
} from "../wire/nbd.ts";
import type { PooledBuffer } from "./buffer-pool.ts";
import type { Negotiated } from "./server-handshake.ts";

/** Bytes of reply header per command: a chunk header with the longest fixed payload fits (20 + 12). */
export const HEADER_ROOM = 32;

export class Command {
  next: Command | undefined = undefined;
  readonly request: BlockRequest;
  readonly segments: SegmentList = new SegmentList(1);
  /** Byte in the connection's region of reply headers. */
  readonly headerStart: number;
  /** NBD_CMD_*. */
  type = 0;
  /** NBD_CMD_FLAG_*. */
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  length = 0;
  /** NBD_E*: of the reply. */
  error = 0;
  /** Data of a read or write, or extents. */
  buffer: PooledBuffer | undefined = undefined;
  /** Extents in `buffer`, of a block status. */
  extentCount = 0;
  /** The transport has sent the reply when its `sent` reaches this. */
  sentMark = 0;

  constructor(index: number, owner: RequestOwner) {
    this.headerStart = index * HEADER_ROOM;
    this.request = new BlockRequest(owner);
    this.request.tag = index;
  }

  begin(request: NbdRequest): void {
    this.type = request.type;
    this.flags = request.flags;
    this.cookieHigh = request.cookieHigh;
    this.cookieLow = request.cookieLow;
    this.offset = request.offset;
    this.length = request.length;
    this.error = 0;
    this.extentCount = 0;
  }

  /** Fills the storage request in from the command, which keeps the rules of `brokenRule`. */
  prepare(): void {
    const { request, type, flags } = this;
    request.operation = operationOf(type);
    request.flags = (flags & NBD_CMD_FLAG_FUA) !== 0 ? RequestFlag.forceUnitAccess : 0;
    if (type === NBD_CMD_WRITE_ZEROES) {
      if ((flags & NBD_CMD_FLAG_NO_HOLE) === 0) request.flags |= RequestFlag.mayUnmap;
      if ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0) request.flags |= RequestFlag.mustBeFast;
    }
    // FUA says nothing of a read, a cache hint or a flush.
    if (type === NBD_CMD_READ || type === NBD_CMD_FLUSH || type === NBD_CMD_CACHE) {
      request.flags = 0;
    }
    request.offset = this.offset;
    request.length = this.length;
    request.segmentByte = 0;
    request.status = 0;
    request.segments = undefined;
    if (this.buffer !== undefined) {
      this.segments.clear();
      this.segments.add(this.buffer.region, this.buffer.start, this.length);
      request.segments = this.segments;
    }
  }
}

function operationOf(type: number): Operation {
  switch (type) {
    case NBD_CMD_READ:
      return Operation.read;
    case NBD_CMD_WRITE:
      return Operation.write;
    case NBD_CMD_FLUSH:
      return Operation.flush;
    case NBD_CMD_TRIM:
      return Operation.discard;
    case NBD_CMD_WRITE_ZEROES:
      return Operation.writeZeroes;
    default:
      return Operation.cache;
  }
}

/** NBD_CMD_FLAG_* that may come with each command; FUA on all of them, as the protocol asks of a server. */
function allowedFlags(type: number, structured: boolean): number {
  switch (type) {
    case NBD_CMD_READ:
      return structured ? NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF : NBD_CMD_FLAG_FUA;
    case NBD_CMD_WRITE_ZEROES:
      return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
      return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
      return NBD_CMD_FLAG_FUA;
  }
}

/** 0, or the NBD_E* that answers a request which the store must not see. */
export function brokenRule(request: NbdRequest, negotiated: Negotiated): number {
  const { type, offset, length } = request;
  const offered = negotiated.export;
  if (type > NBD_CMD_BLOCK_STATUS) return NBD_EINVAL;
  if ((request.flags & ~allowedFlags(type, negotiated.structured)) !== 0) return NBD_EINVAL;
  if (type === NBD_CMD_FLUSH) return offset === 0 && length === 0 ? 0 : NBD_EINVAL;
  const changes = type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES;
  if (changes && offered.readOnly) return NBD_EPERM;
  if (type === NBD_CMD_TRIM && (offered.flags & NBD_FLAG_SEND_TRIM) === 0) return NBD_ENOTSUP;
  if (type === NBD_CMD_CACHE && (offered.flags & NBD_FLAG_SEND_CACHE) === 0) return NBD_EINVAL;
  if (type === NBD_CMD_BLOCK_STATUS && !negotiated.allocation) return NBD_EINVAL;
  if (length === 0) return NBD_EINVAL;
  // The store may have become smaller since the client was told its size.
  const size = Math.min(offered.size, offered.store.info.size);
  if (offset + length > size) {
    return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
  }
  const minimum = offered.blockSizes.minimum;
  if (offset % minimum !== 0 || length % minimum !== 0) return NBD_EINVAL;
  const moves = type === NBD_CMD_READ || type === NBD_CMD_WRITE;
  return moves && length > NBD_MAX_PAYLOAD ? NBD_EINVAL : 0;
}
