/**
 * Loaded into every test process: one that is still there long after its tests should have ended says what keeps it
 * alive, and ends. node:test's own timeout ends tests, not the process a forgotten handle holds.
 */

/** The slowest file (a real Xen under emulation) takes two minutes on two cores. */
const PROCESS_LIMIT_MINUTES = 7;

setTimeout(() => {
  console.error(
    `${process.argv[1]}: still running after ${PROCESS_LIMIT_MINUTES} minutes, held by ${process.getActiveResourcesInfo().join(", ")}`,
  );
  process.exit(1);
}, PROCESS_LIMIT_MINUTES * 60_000).unref();
