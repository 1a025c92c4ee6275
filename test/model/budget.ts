/** How long random tests run: some seconds in npm test, VBDKIT_MODEL_SECONDS (600, say) where someone has the time. */
import fc from "fast-check";

const wished = Number(process.env.VBDKIT_MODEL_SECONDS);

/** Seconds for one property, of which a file has several. `share` is its part of the whole. */
export function seconds(share: number): number {
  return Number.isFinite(wished) && wished > 0 ? wished * share : 20 * share;
}

/** Checks a property for its share of the time; resolves to the number of lives. The failure names the seed and the path; with VBDKIT_MODEL_SEED that
 * seed is the first. */
export async function explore<T>(
  share: number,
  arbitrary: fc.Arbitrary<T>,
  body: (value: T) => Promise<void>,
): Promise<number> {
  let lives = 0;
  const seed = Number(process.env.VBDKIT_MODEL_SEED ?? Math.floor(Math.random() * 2 ** 31));
  const rejections: unknown[] = [];
  let running: Promise<void> = Promise.resolve();
  const onrejection = (reason: unknown) => void rejections.push(reason);
  process.on("unhandledRejection", onrejection);
  try {
    await fc.assert(
      fc.asyncProperty(arbitrary, async (value) => {
        lives++;
        running = body(value);
        await running;
        await new Promise((resolve) => setImmediate(resolve));
        if (rejections.length > 0) throw rejections.shift();
      }),
      {
        seed,
        numRuns: 1_000_000,
        interruptAfterTimeLimit: seconds(share) * 1000,
        markInterruptAsFailure: false,
        endOnFailure: process.env.VBDKIT_MODEL_SHRINK === undefined,
      },
    );
    // Where time was over in the middle of a life, that one ends before the test goes on.
    await running.catch((cause: unknown) => {
      throw new Error(`the last life of seed ${seed} failed, path ${lives - 1}`, { cause });
    });
    return lives;
  } finally {
    process.off("unhandledRejection", onrejection);
  }
}
