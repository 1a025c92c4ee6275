/** The first SIGINT, SIGTERM or SIGHUP asks to stop in good order; the second ends the process at once. */
import { constants } from "node:os";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Aborts when a person or the system asks us to stop. */
export class StopSignal implements Disposable {
  readonly #controller = new AbortController();
  readonly #onsignal = (name: NodeJS.Signals) => {
    if (this.#controller.signal.aborted) process.exit(128 + constants.signals[name]);
    this.stop(name);
  };

  constructor() {
    for (const name of signals) process.on(name, this.#onsignal);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** `reason` is for people: "SIGTERM", "the parent ended". */
  stop(reason: string): void {
    this.#controller.abort(new Error(`stopped: ${reason}`));
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
