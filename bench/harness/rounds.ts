/**
 * Measurements that can be compared on a machine that does other things meanwhile: the contenders take turns, round
 * after round, each round beginning with another one; what is told is the median, how far the rounds lie apart, and the
 * ratio within rounds.
 */
import type { Aim, Contender, LimitAim, RatioAim, Row } from "./group.ts";
import type { Scratch } from "./scratch.ts";

/** Fewer tell nothing of how far they lie apart. */
export const LEAST_ROUNDS = 5;
/** What is below this part of its aim is no matter of noise. */
const GROSS = 0.5;

export interface Figures {
  readonly name: string;
  /** One for each round, in the row's unit. */
  readonly rounds: readonly number[];
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

export interface Verdict {
  readonly aim: Aim;
  /** The peer that the ratio is by: the best of those that the aim names. */
  readonly peer: string | undefined;
  /** Median over the rounds of ours by the peer's, turned around where less is better; of a limit, the part of it that
   * ours takes. */
  readonly ratio: number;
  readonly met: boolean;
  /** Below half of the aim. Limits of time and size depend on the machine, and are never so. */
  readonly gross: boolean;
}

export interface RowResult {
  readonly name: string;
  readonly summary: string;
  readonly unit: string;
  readonly lessIsBetter: boolean;
  readonly contenders: readonly Figures[];
  readonly verdicts: readonly Verdict[];
  /** Why there are no figures. */
  readonly error?: string;
}

/** Far behind every peer that an aim names: one of them may have had a lucky minute. */
export function isGross({ verdicts }: Pick<RowResult, "verdicts">): boolean {
  return verdicts.length > 0 && verdicts.every(({ gross }) => gross);
}

export interface Measuring {
  readonly rounds: number;
  /** Of one measurement. */
  readonly seconds: number;
  /** Leave out whom no aim is about. */
  readonly onlyAims: boolean;
  readonly onprogress: (done: number, all: number, contender: string) => void;
}

/** Measures a row; what goes wrong in it is told in the result, so that the rows after it have their turn. */
export async function measureRow(
  row: Row,
  scratch: Scratch,
  measuring: Measuring,
): Promise<RowResult> {
  const { name, summary, unit, lessIsBetter = false } = row;
  const about = { name, summary, unit, lessIsBetter };
  try {
    await using opened = await row.open(scratch);
    const contenders = opened.contenders.filter(
      (each, index) => index === 0 || !measuring.onlyAims || isNamed(row.aims, each.name),
    );
    const figures = await takeTurns(contenders, measuring);
    await opened.verify?.();
    return {
      ...about,
      contenders: figures,
      verdicts: row.aims.map((aim) => verdict(aim, figures, lessIsBetter)),
    };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { ...about, contenders: [], verdicts: [], error: message };
  }
}

function isNamed(aims: readonly Aim[], name: string): boolean {
  return aims.some((aim) => "against" in aim && aim.against.includes(name));
}

/** One round more is run first and left out: code is compiled in it, and caches are filled. */
async function takeTurns(contenders: readonly Contender[], measuring: Measuring) {
  const { rounds, seconds, onprogress } = measuring;
  const taken = contenders.map((): number[] => []);
  for (let round = 0; round <= rounds; round++) {
    for (let turn = 0; turn < contenders.length; turn++) {
      const index = (round + turn) % contenders.length;
      const contender = contenders[index]!;
      const done = round * contenders.length + turn;
      onprogress(done, (rounds + 1) * contenders.length, contender.name);
      const figure = await contender.measure(seconds);
      if (!(figure >= 0)) throw new Error(`${contender.name} measured ${figure}`);
      if (round > 0) taken[index]!.push(figure);
    }
  }
  return contenders.map(({ name }, index) => figuresOf(name, taken[index]!));
}

export function figuresOf(name: string, rounds: readonly number[]): Figures {
  return {
    name,
    rounds,
    median: median(rounds),
    least: Math.min(...rounds),
    most: Math.max(...rounds),
  };
}

export function verdict(aim: Aim, figures: readonly Figures[], lessIsBetter: boolean): Verdict {
  return "most" in aim ? limitVerdict(aim, figures[0]!) : ratioVerdict(aim, figures, lessIsBetter);
}

function limitVerdict(aim: LimitAim, ours: Figures): Verdict {
  const met = ours.median <= aim.most;
  const ratio = aim.most === 0 ? (met ? 0 : Number.POSITIVE_INFINITY) : ours.median / aim.most;
  return { aim, peer: undefined, ratio, met, gross: false };
}

function ratioVerdict(aim: RatioAim, figures: readonly Figures[], lessIsBetter: boolean): Verdict {
  const ours = figures[0]!;
  const peers = figures
    .filter(({ name }) => aim.against.includes(name))
    .sort((one, other) => (lessIsBetter ? one.median - other.median : other.median - one.median));
  const best = peers[0];
  if (best === undefined) throw new Error(`nobody of ${aim.against.join(", ")} was measured`);
  const ratio = median(
    ours.rounds.map((figure, round) => {
      const theirs = best.rounds[round]!;
      return lessIsBetter ? theirs / figure : figure / theirs;
    }),
  );
  const { name: peer } = best;
  const { least = 0 } = aim;
  return { aim, peer, ratio, met: ratio >= least, gross: ratio < least * GROSS };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
