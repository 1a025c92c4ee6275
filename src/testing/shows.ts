/**
 * Which rows of a table of features a test shows to hold, said by the test itself once it has passed: whoever wants the
 * table listens on the diagnostics channel `vbdkit:shows`, and nobody else pays for it.
 */
import { channel } from "node:diagnostics_channel";
import type { TestContext } from "node:test";

/** What is published for each test that passed. */
export interface ShownRows {
  readonly rows: readonly string[];
  /** The sentence of the test, with those of the tests around it. */
  readonly test: string;
  /** Absent where the runner does not know. */
  readonly file: string | undefined;
}

const shown = channel("vbdkit:shows");

/** The body of a test that shows `rows`: `test("...", shows(["1.3"], async () => {...}))`. One that resolves
 * to false had nothing to look at (the feature is not offered): the test passes, and shows nothing. */
export function shows(
  rows: readonly string[],
  body: (context: TestContext) => unknown,
): (context: TestContext) => Promise<void> {
  return async (context) => {
    if ((await body(context)) === false) return;
    const message: ShownRows = { rows, test: context.fullName, file: context.filePath };
    shown.publish(message);
  };
}
