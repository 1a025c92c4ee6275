/**
 * Why nothing is sent: FreeBSD's xbd_freeze and xbd_thaw with the seed's flags by their names.
 *
 * Invariant: a reason holds once, however often it is given; work goes on when the last reason is taken back.
 */

export const freezeReasons = [
  /** Every command is on the ring (XBDF_CM_SHORTAGE). */
  "command shortage",
  /** The pages for data are all lent. */
  "page shortage",
  /** No grant entry is free (XBDF_GNT_SHORTAGE). */
  "grant shortage",
  /** An ordered write waits until nothing is in flight (XBDF_WAIT_IDLE). */
  "wait idle",
  /** An ordered write is in flight alone (XBDCF_Q_FREEZE). */
  "single step",
  /** suspend() was called, and resume() not yet. */
  "suspended",
  /** freeze() was called, and its holder has not let go yet. */
  "held",
  /** There is no backend now. */
  "disconnected",
] as const;
export type FreezeReason = (typeof freezeReasons)[number];
export type FreezeCounts = Record<FreezeReason, number>;

export function freezeCounts(): FreezeCounts {
  return Object.fromEntries(freezeReasons.map((reason) => [reason, 0])) as FreezeCounts;
}

const bits: Readonly<Record<FreezeReason, number>> = Object.fromEntries(
  freezeReasons.map((reason, i) => [reason, 1 << i]),
) as Record<FreezeReason, number>;

export class Freezer {
  readonly #counts: FreezeCounts;
  #bits = 0;

  /** Counts in `counts`, which several may share. */
  constructor(counts: FreezeCounts) {
    this.#counts = counts;
  }

  get frozen(): boolean {
    return this.#bits !== 0;
  }

  has(reason: FreezeReason): boolean {
    return (this.#bits & bits[reason]) !== 0;
  }

  freeze(reason: FreezeReason): void {
    if (this.has(reason)) return;
    this.#bits |= bits[reason];
    this.#counts[reason]++;
  }

  thaw(reason: FreezeReason): void {
    this.#bits &= ~bits[reason];
  }
}
