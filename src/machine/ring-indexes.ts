/** The shared indexes of a ring, as they stand in its first page: for people, who may look while both ends work. */
import {
  REQ_EVENT,
  REQ_PROD,
  RING_HEADER_WORDS,
  RSP_EVENT,
  RSP_PROD,
} from "../wire/shared-ring.ts";

export interface RingIndexes {
  readonly requestsProduced: number;
  readonly requestEvent: number;
  readonly responsesProduced: number;
  readonly responseEvent: number;
}

/** `bytes` are the ring's pages. */
export function ringIndexes(bytes: Uint8Array): RingIndexes {
  const indexes = new Int32Array(bytes.buffer, bytes.byteOffset, RING_HEADER_WORDS);
  const index = (at: number) => Atomics.load(indexes, at) >>> 0;
  return {
    requestsProduced: index(REQ_PROD),
    requestEvent: index(REQ_EVENT),
    responsesProduced: index(RSP_PROD),
    responseEvent: index(RSP_EVENT),
  };
}
