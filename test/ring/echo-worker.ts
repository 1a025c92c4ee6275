/** A backend in a thread of its own that answers every request, and sleeps whenever the ring lets it. */
import { workerData } from "node:worker_threads";
import { BackRing } from "../../src/ring/back-ring.ts";
import { BlkifRequest, blkifLayout } from "../../src/wire/blkif.ts";

const { ring, events, total } = workerData as {
  ring: SharedArrayBuffer;
  /** Event of the backend, then of the frontend. */
  events: Int32Array;
  total: number;
};
const back = new BackRing(new Uint8Array(ring), blkifLayout("native"), "attach");
const request = new BlkifRequest();
while (back.responsesProduced < total) {
  const event = Atomics.load(events, 0);
  for (let count = back.pending(); count > 0; count--) {
    back.consume(request);
    back.respond(request.idLow, request.idHigh, request.operation, 0);
  }
  if (back.publish()) {
    Atomics.add(events, 1, 1);
    Atomics.notify(events, 1);
  }
  if (back.responsesProduced === total || back.finalCheck()) continue;
  if (Atomics.wait(events, 0, event, 10_000) === "timed-out") break;
}
