/** The first SIGINT, SIGTERM or SIGHUP asks to stop in good order; one that comes later ends the process at once. */
import { constants } from "node:os";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** One Ctrl-C comes twice under npm, which passes on what the terminal has sent to us already; a terminal that closes
 * sends SIGHUP, and so does its shell. Whoever means it twice waits longer than this. */
const SAME_WISH_MS = 1000;

/** Somebody asked us to stop before we were done. */
export class StoppedError extends Error {
  /** 128 + N where it was signal N, as a shell tells of it. */
  readonly exitCode: number;

  constructor(reason: string) {
    super(`stopped: ${reason}`);
    this.name = "StoppedError";
    const number = Object.hasOwn(constants.signals, reason)
      ? constants.signals[reason as NodeJS.Signals]
      : undefined;
    this.exitCode = number === undefined ? 1 : 128 + number;
  }
}

/** Aborts, with a StoppedError, when a person or the system asks us to stop. */
export class StopSignal implements Disposable {
  readonly #controller = new AbortController();
  #stoppedAt = 0;
  readonly #onsignal = (name: NodeJS.Signals) => {
    if (!this.#controller.signal.aborted) return this.stop(name);
    if (performance.now() - this.#stoppedAt < SAME_WISH_MS) return;
    process.exit(128 + constants.signals[name]);
  };

  constructor() {
    for (const name of signals) process.on(name, this.#onsignal);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** `reason` is for people: "SIGTERM", "the parent ended". */
  stop(reason: string): void {
    if (this.#controller.signal.aborted) return;
    this.#stoppedAt = performance.now();
    this.#controller.abort(new StoppedError(reason));
  }

  /** Resolves when somebody asks us to stop. */
  async stopped(): Promise<void> {
    const { signal } = this;
    if (signal.aborted) return;
    // A pending promise alone does not keep the process alive; a timer does.
    const alive = setInterval(() => {}, 2 ** 30);
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    clearInterval(alive);
  }

  [Symbol.dispose](): void {
    for (const name of signals) process.off(name, this.#onsignal);
  }
}
