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
  const onrejection = (reason: unknown) => void rejections.push(reason);
  process.on("unhandledRejection", onrejection);
  try {
    await fc.assert(
      fc.asyncProperty(arbitrary, async (value) => {
        lives++;
        await body(value);
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
    return lives;
  } finally {
    process.off("unhandledRejection", onrejection);
  }
}
