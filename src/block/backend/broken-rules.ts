/**
 * Requests that broke a rule: counted by its name, and told to whoever listens on node:diagnostics_channel
 * "vbdkit:backend", at a bounded rate, because a hostile frontend breaks as many as it likes.
 */
import { channel } from "node:diagnostics_channel";
import type { Clock } from "../../util/clock.ts";
import { type BrokenRule, brokenRuleNames } from "./request.ts";

/** What is published. */
export interface BrokenRequestMessage {
  readonly kind: "brokenRequest";
  /** Backend directory of the vbd. */
  readonly path: string;
  /** Number of the ring. */
  readonly ring: number;
  readonly rule: string;
  /** Broken requests of this ring since the last message that were not told. */
  readonly untold: number;
}

const messages = channel("vbdkit:backend");

/** Ten messages a second tell a person as much as a thousand. */
const MESSAGE_INTERVAL_MILLISECONDS = 100;

export class BrokenRules {
  readonly #counts = new Float64Array(brokenRuleNames.length);
  readonly #path: string;
  readonly #ring: number;
  readonly #clock: Clock;
  #toldAt = Number.NEGATIVE_INFINITY;
  #untold = 0;

  constructor(path: string, ring: number, clock: Clock) {
    this.#path = path;
    this.#ring = ring;
    this.#clock = clock;
  }

  add(rule: BrokenRule): void {
    this.#counts[rule] = this.#counts[rule]! + 1;
    if (!messages.hasSubscribers) return;
    const now = this.#clock.now();
    if (now - this.#toldAt < MESSAGE_INTERVAL_MILLISECONDS) {
      this.#untold++;
      return;
    }
    const message: BrokenRequestMessage = {
      kind: "brokenRequest",
      path: this.#path,
      ring: this.#ring,
      rule: brokenRuleNames[rule]!,
      untold: this.#untold,
    };
    this.#toldAt = now;
    this.#untold = 0;
    messages.publish(message);
  }

  /** By name, without zeroes. */
  get counts(): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const [rule, name] of brokenRuleNames.entries()) {
      if (this.#counts[rule]! > 0) counts[name] = this.#counts[rule]!;
    }
    return counts;
  }
}
