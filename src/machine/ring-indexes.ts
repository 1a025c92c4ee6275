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

const none: RingIndexes = {
  requestsProduced: 0,
  requestEvent: 0,
  responsesProduced: 0,
  responseEvent: 0,
};

/** `bytes` are the ring's pages; all indexes are 0 where there is no ring. */
export function ringIndexes(bytes: Uint8Array | undefined): RingIndexes {
  if (bytes === undefined) return none;
  const indexes = new Int32Array(bytes.buffer, bytes.byteOffset, RING_HEADER_WORDS);
  const index = (at: number) => Atomics.load(indexes, at) >>> 0;
  return {
    requestsProduced: index(REQ_PROD),
    requestEvent: index(REQ_EVENT),
    responsesProduced: index(RSP_PROD),
    responseEvent: index(RSP_EVENT),
  };
}
