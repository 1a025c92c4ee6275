/** What a grant table counts, as its two halves write it. */
import type { GrantCounters } from "../domain.ts";

export type MutableCounters = { -readonly [K in keyof GrantCounters]: GrantCounters[K] };
