/** Times as nbdkit writes them: 10ms, 2s, 0.5, and also 500us, 1.5m; a bare number is seconds. */
const MILLISECONDS: Readonly<Record<string, number>> = {
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  "": 1000,
  s: 1000,
  m: 60_000,
};

/** setTimeout takes no more. */
const MAXIMUM_MILLISECONDS = 2 ** 31 - 1;

/** Milliseconds. Throws an Error that completes "rdelay=TEXT: ...". */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(us|µs|ms|s|m|)$/.exec(text.trim());
  if (match === null) throw new Error("not a time; write 10ms, 500us, 2s, or seconds");
  const milliseconds = Number(match[1]) * MILLISECONDS[match[2]!]!;
  if (milliseconds > MAXIMUM_MILLISECONDS) throw new Error("longer than 24 days");
  return milliseconds;
}
