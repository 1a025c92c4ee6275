/**
 * A terminal's whole screen, for a while: the alternate one, so that what stood there comes back (xterm's control
 * sequences, which every terminal of this century knows).
 *
 * Invariant: disposal puts back the screen, the cursor and the keyboard's mode, however the screen was left.
 */

const ENTER = "\x1b[?1049h\x1b[?25l";
const LEAVE = "\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";
/** A terminal that does not tell its size has a VT100's. */
const DEFAULT_COLUMNS = 80;
const DEFAULT_ROWS = 24;

export class Screen implements Disposable {
  readonly #input: NodeJS.ReadStream;
  readonly #output: NodeJS.WriteStream;
  readonly #onkey: (key: string) => void;
  readonly #onresize: () => void;

  /** `onkey` gets what the keyboard sends, Ctrl-C as "\x03". */
  constructor(
    onkey: (key: string) => void,
    onresize: () => void,
    input: NodeJS.ReadStream = process.stdin,
    output: NodeJS.WriteStream = process.stdout,
  ) {
    this.#input = input;
    this.#output = output;
    this.#onkey = onkey;
    this.#onresize = onresize;
    output.write(ENTER);
    output.on("resize", onresize);
    if (!input.isTTY) return;
    input.setRawMode(true);
    input.setEncoding("utf8").on("data", onkey);
  }

  get size(): { columns: number; rows: number } {
    return {
      columns: this.#output.columns || DEFAULT_COLUMNS,
      rows: this.#output.rows || DEFAULT_ROWS,
    };
  }

  draw(lines: readonly string[]): void {
    this.#output.write(HOME + lines.map((line) => line + CLEAR_LINE).join("\r\n") + CLEAR_BELOW);
  }

  [Symbol.dispose](): void {
    this.#output.off("resize", this.#onresize);
    this.#output.write(LEAVE);
    if (!this.#input.isTTY) return;
    this.#input.off("data", this.#onkey).pause();
    this.#input.setRawMode(false);
  }
}
