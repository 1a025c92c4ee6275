/**
 * Notices that an image got another size from outside (truncate -s, lvextend, qemu-img resize), as Linux's blkback looks
 * at its device: by asking now and then, because a watch would wake for every write.
 *
 * Invariant: nobody asks while nobody wants to know, and no answer is heard after the last one left.
 */
const INTERVAL_MILLISECONDS = 1000;

export class SizeWatch implements Disposable {
  readonly #sizeNow: () => Promise<number>;
  readonly #onsize: (size: number) => void;
  #watchers = 0;
  #timer: NodeJS.Timeout | undefined = undefined;

  /** `onsize` hears every answer, also of a size that is known. Does not keep the process alive. */
  constructor(sizeNow: () => Promise<number>, onsize: (size: number) => void) {
    this.#sizeNow = sizeNow;
    this.#onsize = onsize;
  }

  /** Asks until the returned is disposed. */
  watch(): Disposable {
    if (this.#watchers++ === 0) this.#ask();
    let left = false;
    return {
      [Symbol.dispose]: () => {
        if (left) return;
        left = true;
        if (--this.#watchers === 0) this.#stop();
      },
    };
  }

  #ask(): void {
    const timer = setTimeout(async () => {
      const size = await this.#sizeNow().catch(() => undefined);
      if (this.#timer !== timer) return;
      if (size !== undefined) this.#onsize(size);
      if (this.#timer === timer) this.#ask();
    }, INTERVAL_MILLISECONDS);
    timer.unref();
    this.#timer = timer;
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  [Symbol.dispose](): void {
    this.#stop();
  }
}
