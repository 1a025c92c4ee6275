/** Flips bits in the memory of two domains that are at work: what a hostile peer, or a broken machine, would do to the
 * pages they share. It is told where, and goes on until it is told to end. */
import { parentPort, workerData } from "node:worker_threads";
import { SeededRandom } from "../../src/util/random.ts";

export interface FlippingOrders {
  readonly seed: number;
  /** Shared memory. */
  readonly bytes: Uint8Array;
  /** Runs of bytes in it. */
  readonly targets: readonly { readonly start: number; readonly length: number }[];
  /** Flips between two looks at the clock. */
  readonly burst: number;
  /** Milliseconds between two bursts; 0 for none. */
  readonly pause: number;
  /** Word 0: nonzero to end. Word 1: flips so far. */
  readonly control: Int32Array;
}

const { seed, bytes, targets, burst, pause, control } = workerData as FlippingOrders;
const random = new SeededRandom(seed);
const shared = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
while (Atomics.load(control, 0) === 0) {
  for (let i = 0; i < burst; i++) {
    const { start, length } = targets[random.below(targets.length)]!;
    const at = start + random.below(length);
    // Whole bytes at times: indexes jump, references become those of other pages.
    if (random.below(4) === 0) Atomics.store(shared, at, random.below(256));
    else Atomics.xor(shared, at, 1 << random.below(8));
  }
  Atomics.add(control, 1, burst);
  if (pause > 0) Atomics.wait(control, 0, 0, pause);
}
parentPort!.postMessage("ended");
