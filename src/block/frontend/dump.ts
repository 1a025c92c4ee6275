/**
 * Writing by looking at the rings instead of waiting for events: FreeBSD's xbd_dump and xbd_quiesce. For the last words of
 * a process whose event loop turns no more.
 */
import { regionOver, SegmentList } from "../../io/memory.ts";
import type { Reactor } from "../../io/reactor.ts";
import { BlockRequest, Operation } from "../../store/block-store.ts";
import { errnoName } from "../../store/errors.ts";
import { XenError } from "../../xen/domain.ts";
import type { FrontendQueue } from "./queue.ts";

/** How long the thread sleeps between two looks, so that a backend on the same CPU gets its turn (HYPERVISOR_yield). */
const YIELD_MILLISECONDS = 0.05;

export interface PolledWrite {
  readonly queues: readonly FrontendQueue[];
  readonly reactor: Reactor;
  /** Whether to give up. */
  readonly late: () => boolean;
  /** Errno of the rule that a request breaks. */
  readonly check: (request: BlockRequest) => number;
  /** Bytes. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** Returns when the bytes are written; throws XenError with the errno's name, or EBUSY when it got late. */
export function pollWrite(write: PolledWrite): void {
  const { queues, bytes } = write;
  if (bytes.length === 0) return;
  pollUntil(write, () => queues.every(({ inFlight }) => inFlight === 0));
  let done = false;
  const request = new BlockRequest({
    completed: () => {
      done = true;
    },
  });
  const region = regionOver(bytes);
  const segments = new SegmentList(1);
  segments.add(region, 0, bytes.length);
  request.operation = Operation.write;
  request.offset = write.offset;
  request.length = bytes.length;
  request.segments = segments;
  request.status = write.check(request);
  if (request.status === 0) {
    queues[0]!.submit(request);
    pollUntil(write, () => done);
  }
  region[Symbol.dispose]();
  if (request.status === 0) return;
  const end = write.offset + bytes.length;
  throw new XenError(errnoName(request.status), `writing bytes ${write.offset} to ${end}`);
}

function pollUntil({ queues, reactor, late }: PolledWrite, finished: () => boolean): void {
  const pause = new Int32Array(new SharedArrayBuffer(4));
  while (!finished()) {
    for (const queue of queues) queue.poll();
    // A backend on this thread gets to work here.
    reactor.settle();
    if (finished()) return;
    if (late()) throw new XenError("EBUSY", "the backend does not answer");
    Atomics.wait(pause, 0, 0, YIELD_MILLISECONDS);
  }
}
