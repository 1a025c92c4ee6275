/** A progress bar with rate and remaining time, on a terminal; silence anywhere else. */
import { formatSize } from "../util/size.ts";

/** Often enough to look alive, too rarely to cost anything. */
const REDRAW_MS = 100;
const BAR_CELLS = 24;

/** What is shown of so much of a whole, so many seconds after the beginning. */
type Line = (done: number, total: number, seconds: number) => string;

export class Progress implements Disposable {
  readonly #total: number;
  readonly #line: Line;
  readonly #stream: NodeJS.WriteStream;
  readonly #began: number;
  #drawn = 0;

  /** `total` in bytes, or in what `line` takes it for. */
  constructor(
    total: number,
    line: Line = progressLine,
    stream: NodeJS.WriteStream = process.stderr,
  ) {
    this.#total = total;
    this.#line = line;
    this.#stream = stream;
    this.#began = performance.now();
  }

  /** `done` as the total. */
  update(done: number): void {
    const now = performance.now();
    if (!this.#stream.isTTY || (now - this.#drawn < REDRAW_MS && done < this.#total)) return;
    this.#drawn = now;
    const line = this.#line(done, this.#total, (now - this.#began) / 1000);
    this.#stream.write(`\r\x1b[K${line}`);
  }

  /** Leaves no line: what comes next says more. */
  clear(): void {
    if (this.#drawn > 0) this.#stream.write("\r\x1b[K");
    this.#drawn = 0;
  }

  [Symbol.dispose](): void {
    if (this.#drawn > 0) this.#stream.write("\n");
    this.#drawn = 0;
  }
}

/** " 42% [########      ] 430 MiB of 1 GiB  210 MiB/s  0:03 left". Bytes and seconds. */
export function progressLine(done: number, total: number, seconds: number): string {
  const rate = seconds > 0 ? done / seconds : 0;
  const left = rate > 0 ? `${clock((total - done) / rate)} left` : "";
  return `${progressBar(total === 0 ? 1 : done / total)} ${formatSize(done)} of ${formatSize(total)}  ${formatSize(Math.round(rate))}/s  ${left}`;
}

/** " 42% [########      ]" of a share from 0 to 1. */
export function progressBar(share: number): string {
  const bar = "#".repeat(Math.round(share * BAR_CELLS)).padEnd(BAR_CELLS);
  return `${`${Math.floor(share * 100)}%`.padStart(4)} [${bar}]`;
}

function clock(seconds: number): string {
  const whole = Math.ceil(seconds);
  const minutes = Math.floor(whole / 60);
  const head = minutes < 60 ? `${minutes}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}`;
  return `${head}:${two(whole % 60)}`;
}

function two(value: number): string {
  return String(value).padStart(2, "0");
}
