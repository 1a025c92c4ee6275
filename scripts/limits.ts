/** How long the tests of a file may take: what takes longer hangs. */

/** The slowest takes one on two cores, and ten others may want these. */
const LIMIT_MINUTES = 6;
/** A real Xen under emulation takes two, and is the first to suffer from neighbours. */
const LAB_LIMIT_MINUTES = 15;
/** The short benchmark takes three. A limit of its own has it run when the others have ended. */
const BENCH_LIMIT_MINUTES = 8;
/** Tests that are run on request wait for a host that is busy: three minutes of a processor may be twenty. */
const ON_REQUEST_LIMIT_MINUTES = 45;

export function fileLimitMinutes(file: string): number {
  if (file.includes("test/xen/lab/all/")) return ON_REQUEST_LIMIT_MINUTES;
  if (file.includes("test/bench/short")) return BENCH_LIMIT_MINUTES;
  return file.includes("test/xen/lab/") ? LAB_LIMIT_MINUTES : LIMIT_MINUTES;
}
