/** What a grant table counts, as its parts write it. */
import type { GrantCounters } from "./domain.ts";

export type MutableCounters = { -readonly [K in keyof GrantCounters]: GrantCounters[K] };

export function newGrantCounters(): MutableCounters {
  return { granted: 0, mapped: 0, maps: 0, unmaps: 0, copies: 0, quarantined: 0 };
}
