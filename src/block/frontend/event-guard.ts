/**
 * Keeps a backend from driving us with events that bring nothing (XSA-391): what Linux does by late ends of interrupts.
 *
 * A port with many useless events in a row is masked for a while, each time longer. Nothing is lost by it: the pending
 * bit stays, and whoever submits looks at the ring anyway.
 */
import type { Clock } from "../../util/clock.ts";
import type { EventChannel } from "../../xen/domain.ts";

/** Useless events in a row that an honest backend may cause: we often took the response before its event came. */
const TOLERATED_EVENTS = 64;
/** Linux's longest delay of a late end of interrupt. */
const MAX_MASKED_MILLISECONDS = 1000;

export class EventGuard implements Disposable {
  readonly #channel: EventChannel;
  readonly #clock: Clock;
  #useless = 0;
  #timer: Disposable | undefined = undefined;

  constructor(channel: EventChannel, clock: Clock) {
    this.#channel = channel;
    this.#clock = clock;
  }

  /** A response came: the backend works. */
  useful(): void {
    this.#useless = 0;
  }

  /** An event came, and no response with it. */
  useless(): void {
    const excess = ++this.#useless - TOLERATED_EVENTS;
    if (excess <= 0 || this.#timer !== undefined) return;
    this.#channel.mask();
    const delay = Math.min(2 ** Math.min(excess - 1, 10), MAX_MASKED_MILLISECONDS);
    this.#timer = this.#clock.after(delay, () => {
      this.#timer = undefined;
      this.#channel.unmask();
    });
  }

  [Symbol.dispose](): void {
    this.#timer?.[Symbol.dispose]();
  }
}
