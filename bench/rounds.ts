/**
 * Measurements that can be compared on a machine that does other things meanwhile: the candidates take turns, round
 * after round, and what is told is the median, how far the rounds lie apart, and the ratio within rounds.
 */

/** A way to do the same thing. */
export interface Candidate {
  readonly name: string;
  /** Operations per second, measured anew. */
  measure(): Promise<number>;
}

export interface Comparison {
  readonly name: string;
  readonly unit: string;
  /** One figure for each round. */
  readonly figures: Readonly<Record<string, readonly number[]>>;
  readonly medians: Readonly<Record<string, number>>;
  /** Largest less smallest figure, as part of the median. */
  readonly spreads: Readonly<Record<string, number>>;
  /** Median over the rounds of the first candidate's figure by the second's. */
  readonly ratio: number;
}

/** The first candidate is ours, the second is what it is compared with. One round more is run first and left out. */
export async function compare(
  name: string,
  unit: string,
  [ours, theirs]: readonly [Candidate, Candidate],
  rounds: number,
): Promise<Comparison> {
  const figures: Record<string, number[]> = { [ours.name]: [], [theirs.name]: [] };
  for (let round = 0; round <= rounds; round++) {
    for (const candidate of [ours, theirs]) {
      const figure = await candidate.measure();
      if (round > 0) figures[candidate.name]!.push(figure);
    }
  }
  const entries = Object.entries(figures);
  const ratios = figures[ours.name]!.map((figure, round) => figure / figures[theirs.name]![round]!);
  return {
    name,
    unit,
    figures,
    medians: Object.fromEntries(entries.map(([key, values]) => [key, median(values)])),
    spreads: Object.fromEntries(entries.map(([key, values]) => [key, spread(values)])),
    ratio: median(ratios),
  };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function spread(values: readonly number[]): number {
  return (Math.max(...values) - Math.min(...values)) / median(values);
}

/** One line for people. */
export function describe({ name, unit, medians, spreads, ratio }: Comparison): string {
  const parts = Object.entries(medians).map(([key, value]) => {
    const around = `±${Math.round(spreads[key]! * 50)}%`;
    return `${key} ${Math.round(value).toLocaleString("en-US").padStart(9)} ${around.padEnd(5)}`;
  });
  return `${name.padEnd(24)} ${parts.join("  ")}  ${unit}  ratio ${ratio.toFixed(2)}`;
}
