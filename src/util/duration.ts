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

/** "62.3 µs", "1.02 ms", "5 s", of milliseconds: three digits at most, as long as it is below 1000 seconds. */
export function formatDuration(milliseconds: number): string {
  const [unit, size] =
    milliseconds < 0.9995 ? ["µs", 1e-3] : milliseconds < 999.5 ? ["ms", 1] : ["s", 1000];
  const value = milliseconds / Number(size);
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))} ${unit}`;
}
