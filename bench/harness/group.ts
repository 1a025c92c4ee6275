/**
 * What a benchmark is made of: groups of rows; in a row contenders do the same thing, ours first.
 *
 * Invariant: a row is measured alone as it is among others: it opens what it needs and closes it again, or finds what rows
 * of its group share as it would open it.
 */
import type { Scratch } from "./scratch.ts";

export interface Group {
  readonly name: string;
  /** One line for people. */
  readonly summary: string;
  /** Every contender of any row, in the order of the table's columns; ours is the first. */
  readonly columns: readonly string[];
  readonly rows: readonly Row[];
  /** Ends what its rows left open for those after them. */
  close?(): Promise<void>;
}

export interface Row {
  readonly name: string;
  /** What is done, for people: the name is for the command line. */
  readonly summary: string;
  /** Of every figure: "IOPS", "MiB/s", "ns" ... */
  readonly unit: string;
  /** A duration or a size rather than a rate. */
  readonly lessIsBetter?: boolean;
  readonly aims: readonly Aim[];
  /** The short form has it. */
  readonly short?: boolean;
  open(scratch: Scratch): Promise<OpenedRow>;
}

export interface OpenedRow extends AsyncDisposable {
  /** Ours first; all have a column of the group's. */
  readonly contenders: readonly Contender[];
  /** Whatever is too long to be done in each measurement. Rejects where data was wrong. */
  verify?(): Promise<void>;
}

/** A way to do what the row is about. */
export interface Contender {
  readonly name: string;
  /** Works for about so long and resolves to a figure. Rejects where something failed, or the data was not what it must
   * be. */
  measure(seconds: number): Promise<number>;
}

/** What is expected of ours: to be so good by the best of some peers, whatever the machine; or a limit. Without `least`
 * the ratio is told, and nothing is expected. */
export type Aim = RatioAim | LimitAim;
export interface RatioAim {
  readonly against: readonly string[];
  /** Ours by theirs; theirs by ours where less is better. */
  readonly least?: number;
}
export interface LimitAim {
  /** In the row's unit. */
  readonly most: number;
}
