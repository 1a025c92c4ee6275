/**
 * Keeps a peer from driving us with events that bring nothing (XSA-332, XSA-391): what Linux does by late ends of
 * interrupts (events_base.c: xen_irq_lateeoi, XEN_EOI_FLAG_SPURIOUS).
 *
 * A port with many useless events in a row is masked for a while, each time longer. Nothing is lost by it: the pending
 * bit stays, and whoever has work of its own looks at the ring anyway. Invariant: one event that brought something
 * makes up for all before it, so that an honest peer is never made to wait.
 */
import type { Clock } from "../util/clock.ts";
import type { EventChannel } from "./domain.ts";

/** Useless events in a row that an honest peer may cause: we often took what it sent before its event came. */
export const TOLERATED_EVENTS = 64;
/** Linux's longest delay of a late end of interrupt. */
export const MAX_MASKED_MILLISECONDS = 1000;

export class EventGuard implements Disposable {
  readonly #channel: EventChannel;
  readonly #clock: Clock;
  /** An event came that was not ended. */
  #came = false;
  #useless = 0;
  #timer: Disposable | undefined = undefined;
  #disposed = false;

  constructor(channel: EventChannel, clock: Clock) {
    this.#channel = channel;
    this.#clock = clock;
  }

  /** An event came. Whoever is called by it calls `ended` when it has looked at the ring. */
  came(): void {
    this.#came = true;
  }

  /** The ring was looked at, because of an event or anything else, and that was `useful` where something was on it. */
  ended(useful: boolean): void {
    if (useful) {
      this.#useless = 0;
      if (this.#timer !== undefined) this.#unmask();
    } else if (this.#came) this.#spurious();
    this.#came = false;
  }

  #spurious(): void {
    const excess = ++this.#useless - TOLERATED_EVENTS;
    if (excess <= 0 || this.#timer !== undefined || this.#disposed) return;
    this.#channel.mask();
    const delay = Math.min(2 ** Math.min(excess - 1, 10), MAX_MASKED_MILLISECONDS);
    this.#timer = this.#clock.after(delay, () => this.#unmask());
  }

  #unmask(): void {
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
    this.#channel.unmask();
  }

  /** The port stays as it is, masked or not: it is about to be closed, or was given up. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
  }
}
