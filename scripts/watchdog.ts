/**
 * Loaded into every test process: one that is still there long after its tests should have ended says what keeps it
 * alive, and ends. node:test's own timeout ends tests, not the process a forgotten handle holds.
 */

import { fileLimitMinutes } from "./limits.ts";

/** The run's own limit comes first where it can. */
const limitMinutes = fileLimitMinutes(process.argv[1] ?? "") + 1;

setTimeout(() => {
  console.error(
    `${process.argv[1]}: still running after ${limitMinutes} minutes, held by ${process.getActiveResourcesInfo().join(", ")}`,
  );
  process.exit(1);
}, limitMinutes * 60_000).unref();
