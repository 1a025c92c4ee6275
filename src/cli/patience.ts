/** What a person is told who asked a server to stop and sees nothing happen. */

/** Nobody wonders before. */
const SILENCE_MS = 1000;
/** The disks are asked how much they still have to do; one that does not answer is why we wait. */
const ANSWER_MS = 500;

/** Says on standard error what is waited for when ending takes long. */
export class Patience implements Disposable {
  /** Asked for what is in flight, once it serves. */
  server: { inFlight(): Promise<number> } | undefined;
  #over = false;
  #timer: NodeJS.Timeout | undefined;

  /** The end begins when `signal` aborts. */
  constructor(signal: AbortSignal) {
    signal.addEventListener("abort", () => {
      this.#timer = setTimeout(() => void this.#say(), SILENCE_MS);
      this.#timer.unref();
    });
  }

  async #say(): Promise<void> {
    const inFlight = await this.#inFlight();
    if (this.#over) return;
    const requests = inFlight === 1 ? "1 request" : `${inFlight} requests`;
    const what = inFlight === undefined || inFlight === 0 ? "the disks" : requests;
    process.stderr.write(`vbdkit: waiting for ${what}; Ctrl-C again ends at once\n`);
  }

  async #inFlight(): Promise<number | undefined> {
    const late = new Promise<undefined>((resolve) => {
      setTimeout(() => resolve(undefined), ANSWER_MS).unref();
    });
    const told = this.server?.inFlight().catch(() => undefined);
    return await Promise.race([told, late]);
  }

  [Symbol.dispose](): void {
    this.#over = true;
    clearTimeout(this.#timer);
  }
}
