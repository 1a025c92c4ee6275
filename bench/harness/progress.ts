/** One line at the foot of a terminal that says what is going on; nothing where there is no terminal. */
const CLEAR_LINE = "\r\x1b[K";

export class Progress implements Disposable {
  readonly #output: NodeJS.WriteStream;
  #shown = false;

  constructor(output: NodeJS.WriteStream) {
    this.#output = output;
  }

  show(line: string): void {
    if (!this.#output.isTTY) return;
    const columns = this.#output.columns || 80;
    this.#output.write(CLEAR_LINE + line.slice(0, columns - 1));
    this.#shown = true;
  }

  /** To be called before anything else is written. */
  clear(): void {
    if (this.#shown) this.#output.write(CLEAR_LINE);
    this.#shown = false;
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}
