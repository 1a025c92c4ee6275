/** A progress bar with rate and remaining time, on a terminal; silence anywhere else. */
import { formatSize } from "../util/size.ts";

/** Often enough to look alive, too rarely to cost anything. */
const REDRAW_MS = 100;
const BAR_CELLS = 24;

export class Progress implements Disposable {
  readonly #total: number;
  readonly #stream: NodeJS.WriteStream;
  readonly #began: number;
  #drawn = 0;

  /** `total` in bytes. */
  constructor(total: number, stream: NodeJS.WriteStream = process.stderr) {
    this.#total = total;
    this.#stream = stream;
    this.#began = performance.now();
  }

  /** `done` in bytes. */
  update(done: number): void {
    const now = performance.now();
    if (!this.#stream.isTTY || (now - this.#drawn < REDRAW_MS && done < this.#total)) return;
    this.#drawn = now;
    this.#stream.write(`\r\x1b[K${progressLine(done, this.#total, (now - this.#began) / 1000)}`);
  }

  [Symbol.dispose](): void {
    if (this.#drawn > 0) this.#stream.write("\n");
    this.#drawn = 0;
  }
}

/** " 42% [########      ] 430 MiB of 1 GiB  210 MiB/s  0:03 left". Bytes and seconds. */
export function progressLine(done: number, total: number, seconds: number): string {
  const share = total === 0 ? 1 : done / total;
  const bar = "#".repeat(Math.round(share * BAR_CELLS)).padEnd(BAR_CELLS);
  const rate = seconds > 0 ? done / seconds : 0;
  const left = rate > 0 ? `${clock((total - done) / rate)} left` : "";
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  return `${percent} [${bar}] ${formatSize(done)} of ${formatSize(total)}  ${formatSize(Math.round(rate))}/s  ${left}`;
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
