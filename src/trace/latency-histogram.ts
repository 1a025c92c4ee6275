/**
 * How long requests took, counted so that any percentile can be told, in memory that does not grow: each power of two of
 * microseconds is cut into 64 parts, so that what is told is at most 1.6 % more than it was.
 *
 * Invariant: recording neither allocates nor fails; a time that is longer than any bucket is counted in the last one.
 */

/** Of each power of two, and of the first microsecond. */
const PARTS = 64;
const PARTS_LOG2 = 6;
/** Up to twelve days. */
const OCTAVES = 40;
const BUCKETS = PARTS * (1 + OCTAVES);
/** What fits into 31 bits is cut by shifting; a longer time is first made shorter by so many powers of two. */
const FAR_TICKS = 2 ** 31;
const FAR_LOG2 = 20;

/** Requests that took at least `from` and less than `to`, in microseconds: powers of two, but for a `from` of 0. */
export interface LatencyOctave {
  readonly from: number;
  readonly to: number;
  readonly requests: number;
}

/** In microseconds; 0 where there was no request. */
export interface LatencySummary {
  readonly least: number;
  readonly mean: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly p999: number;
  readonly most: number;
}

export class LatencyHistogram {
  readonly #buckets = new Float64Array(BUCKETS);
  #count = 0;
  #sum = 0;
  #least = Number.POSITIVE_INFINITY;
  #most = 0;

  /** Requests that were recorded. */
  get count(): number {
    return this.#count;
  }

  /** Counts a request that took so long; not below 0. */
  record(microseconds: number): void {
    const bucket = bucketOf(microseconds);
    this.#buckets[bucket] = this.#buckets[bucket]! + 1;
    this.#count++;
    this.#sum += microseconds;
    if (microseconds < this.#least) this.#least = microseconds;
    if (microseconds > this.#most) this.#most = microseconds;
  }

  /** Forgets everything. */
  clear(): void {
    this.#buckets.fill(0);
    this.#count = 0;
    this.#sum = 0;
    this.#least = Number.POSITIVE_INFINITY;
    this.#most = 0;
  }

  /** Microseconds that the given part (0 to 1) of the requests did not exceed; 0 where there was none. */
  percentile(part: number): number {
    const wanted = Math.max(1, Math.ceil(part * this.#count));
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.#buckets[bucket]!;
      if (seen >= wanted) return Math.min(startOf(bucket + 1), this.#most);
    }
    return this.#most;
  }

  get summary(): LatencySummary {
    const count = this.#count;
    return {
      least: count === 0 ? 0 : this.#least,
      mean: count === 0 ? 0 : this.#sum / count,
      p50: this.percentile(0.5),
      p95: this.percentile(0.95),
      p99: this.percentile(0.99),
      p999: this.percentile(0.999),
      most: this.#most,
    };
  }

  /** From the first octave that has requests to the last, with those between that have none. */
  octaves(): LatencyOctave[] {
    const all = Array.from({ length: 1 + OCTAVES }, (_, octave): LatencyOctave => {
      const first = octave * PARTS;
      const parts = this.#buckets.subarray(first, first + PARTS);
      return {
        from: startOf(first),
        to: startOf(first + PARTS),
        requests: parts.reduce((sum, requests) => sum + requests, 0),
      };
    });
    const used = ({ requests }: LatencyOctave) => requests > 0;
    const first = all.findIndex(used);
    return first < 0 ? [] : all.slice(first, all.findLastIndex(used) + 1);
  }
}

function bucketOf(microseconds: number): number {
  let ticks = Math.floor(microseconds * PARTS);
  let octave = 0;
  if (ticks >= FAR_TICKS) {
    ticks = Math.min(Math.floor(ticks / 2 ** FAR_LOG2), FAR_TICKS - 1);
    octave = FAR_LOG2;
  }
  if (ticks < PARTS) return ticks;
  const above = 31 - PARTS_LOG2 - Math.clz32(ticks);
  octave += above;
  return Math.min(octave * PARTS + (ticks >>> above), BUCKETS - 1);
}

/** Microseconds at which a bucket begins: the first 64 are the parts of one microsecond. */
function startOf(bucket: number): number {
  const octave = Math.floor(bucket / PARTS);
  const part = bucket % PARTS;
  return octave === 0 ? part / PARTS : 2 ** (octave - 1) * (1 + part / PARTS);
}
