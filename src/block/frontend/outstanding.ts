/** A request that was submitted and has not ended, as plain data with a copy of what it writes: what outlives the process
 * it was submitted in. */
import { type BlockRequest, Operation, RequestFlag } from "../../store/block-store.ts";
import { copyFromSegments } from "../../store/segments.ts";
import { ORDERED } from "./completion.ts";

export interface OutstandingRequest {
  readonly operation: Operation;
  /** Submitted by submitOrdered(). */
  readonly ordered: boolean;
  /** Bits of RequestFlag. */
  readonly flags: number;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** Of a write, `length` bytes; else none. */
  readonly data: Uint8Array;
}

const KNOWN_FLAGS: number = Object.values(RequestFlag).reduce((all, flag) => all | flag, 0);

export function copyOutstanding(request: BlockRequest): OutstandingRequest {
  const { operation, flags, offset, length, segments, segmentByte } = request;
  const data = new Uint8Array(operation === Operation.write ? length : 0);
  if (data.length > 0) copyFromSegments(segments!, segmentByte, data, 0, length);
  const ordered = (flags & ORDERED) !== 0;
  return { operation, ordered, flags: flags & KNOWN_FLAGS, offset, length, data };
}
