/** Questions to another thread or process, each with a number, and its one answer. */
export class Questions {
  readonly #waiting = new Map<
    number,
    { resolve(answer: unknown): void; reject(error: Error): void }
  >();
  #number = 0;
  #ended: Error | undefined = undefined;

  /** Has `post` send the question with its number; resolves with the answer. */
  ask<T>(post: (number: number) => void): Promise<T> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const number = ++this.#number;
    this.#waiting.set(number, { resolve: resolve as (answer: unknown) => void, reject });
    post(number);
    return promise;
  }

  /** An answer came, or what went wrong; nothing happens where nobody waits for it. */
  answered(number: number, answer: unknown, error?: Error): void {
    const waiting = this.#waiting.get(number);
    this.#waiting.delete(number);
    if (error === undefined) waiting?.resolve(answer);
    else waiting?.reject(error);
  }

  /** There will be no more answers. */
  end(error: Error): void {
    this.#ended = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
