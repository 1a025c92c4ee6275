/**
 * A process that is started before it is needed: a toolstack gives a disk ten seconds, and a guest that comes should not
 * wait for a program to start.
 *
 * Invariant: at most one waits; none is started while the one that was taken last begins its work, which is what
 * somebody waits for.
 */
import type { Clock } from "../util/clock.ts";

/** Half of what libxl gives a disk to be ready (LIBXL_INIT_TIMEOUT). Milliseconds. */
const PAUSE = 5000;

export interface SpareProcess {
  readonly alive: boolean;
  leave(): Promise<void>;
}

export class Spare<P extends SpareProcess> implements AsyncDisposable {
  readonly #start: () => P;
  readonly #clock: Clock;
  #process: P | undefined;
  #pause: Disposable | undefined = undefined;

  /** @param process - the first, which may be waiting already. */
  constructor(process: P, start: () => P, clock: Clock) {
    this.#process = process;
    this.#start = start;
    this.#clock = clock;
  }

  /** The one that waits, or a new one where none does. */
  take(): P {
    const taken = this.#process?.alive ? this.#process : this.#start();
    this.#process = undefined;
    this.#pause?.[Symbol.dispose]();
    this.#pause = this.#clock.after(PAUSE, () => {
      this.#process = this.#start();
    });
    return taken;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#pause?.[Symbol.dispose]();
    const process = this.#process;
    this.#process = undefined;
    await process?.leave();
  }
}
