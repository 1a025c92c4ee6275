/** Both ends of a ring and the codec, and nothing else: a batch of requests is put and published, taken, answered, and the
 * answers taken. */
import assert from "node:assert/strict";
import { BackRing } from "../../src/ring/back-ring.ts";
import { FrontRing } from "../../src/ring/front-ring.ts";
import {
  BLKIF_OP_READ,
  BLKIF_RSP_OKAY,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
} from "../../src/wire/blkif.ts";

const BATCH = 32;
const BATCHES_PER_LOOK = 512;

/** Nanoseconds of a request. */
export function ringCost(seconds: number): number {
  const bytes = new Uint8Array(new SharedArrayBuffer(4096));
  const layout = blkifLayout("x86_64-abi");
  const front = new FrontRing(bytes, layout);
  const back = new BackRing(bytes, layout);
  const request = new BlkifRequest();
  request.operation = BLKIF_OP_READ;
  request.segmentCount = 1;
  request.references[0] = 8;
  request.lastSectors[0] = 7;
  const taken = new BlkifRequest();
  const response = new BlkifResponse();
  let done = 0;
  let sum = 0;
  const began = performance.now();
  const end = began + seconds * 1000;
  while (performance.now() < end) {
    for (let batch = 0; batch < BATCHES_PER_LOOK; batch++) {
      for (let i = 0; i < BATCH; i++) {
        request.idLow = i;
        request.sectorLow = i * 8;
        front.push(request);
      }
      front.publish();
      for (let count = back.pending(); count > 0; count--) {
        back.consume(taken);
        back.respond(taken.idLow, taken.idHigh, taken.operation, BLKIF_RSP_OKAY);
        sum += taken.sectorLow;
      }
      back.publish();
      for (let count = front.pending(); count > 0; count--) {
        front.consume(response);
        sum -= response.idLow * 8;
      }
      done += BATCH;
    }
  }
  const passed = performance.now() - began;
  assert.equal(sum, 0, "a request or a response that came back was another");
  return (passed / done) * 1e6;
}
