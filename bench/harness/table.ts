/** Results for people: a table on a terminal, line by line as they come, and the same in Markdown. */
import type { Aim, Group, Row } from "./group.ts";
import type { Figures, RowResult, Verdict } from "./rounds.ts";

const CELL = 15;

export class Table {
  readonly #group: Group;
  readonly #nameWidth: number;
  readonly #unitWidth: number;

  /** `rows` are those that will come. */
  constructor(group: Group, rows: readonly Row[]) {
    this.#group = group;
    this.#nameWidth = widest(rows.map(({ name }) => name));
    this.#unitWidth = widest(rows.map(({ unit }) => unit));
  }

  get head(): string {
    const { name, summary, columns } = this.#group;
    const cells = columns.map((column) => column.padEnd(CELL)).join("");
    const line = [pad("", this.#nameWidth), pad("", this.#unitWidth), cells, "by its peer"];
    return `${name}: ${summary}\n${line.join("  ").trimEnd()}`;
  }

  line({ name, unit, contenders, verdicts, error }: RowResult): string {
    if (error !== undefined) return `${pad(name, this.#nameWidth)}  failed: ${error}`;
    const cells = this.#group.columns.map((column) => {
      const figures = contenders.find((each) => each.name === column);
      return (figures === undefined ? "" : withSpread(figures)).padEnd(CELL);
    });
    const words = verdicts.map(describeVerdict).join(", ");
    return [pad(name, this.#nameWidth), pad(unit, this.#unitWidth), cells.join(""), words]
      .join("  ")
      .trimEnd();
  }
}

function widest(texts: readonly string[]): number {
  return Math.max(0, ...texts.map(({ length }) => length));
}

function pad(text: string, width: number): string {
  return text.padEnd(width);
}

/** Four digits and a thousand's letter: 812.3k, 5.204M, 17.3. */
export function short(value: number): string {
  const [letter, unit] = value >= 1e6 ? ["M", 1e6] : value >= 1e4 ? ["k", 1e3] : ["", 1];
  const scaled = value / Number(unit);
  const digits = scaled >= 1000 || scaled === 0 ? 0 : scaled >= 100 ? 1 : scaled >= 10 ? 2 : 3;
  return `${Number(scaled.toFixed(digits))}${letter}`;
}

/** Half of the way from the least figure to the most, as part of the median: how far one may trust it. */
function spreadOf({ least, most, median }: Figures): string {
  return median === 0 ? "0%" : `${Math.round(((most - least) / 2 / median) * 100)}%`;
}

function withSpread(figures: Figures): string {
  return `${short(figures.median).padStart(7)} ±${spreadOf(figures)}`;
}

/** "" where nothing is expected. */
function describeAim(aim: Aim): string {
  if ("most" in aim) return `at most ${short(aim.most)}`;
  return aim.least === undefined ? "" : `${aim.least}`;
}

function describeRatio({ peer, ratio }: Verdict): string {
  return peer === undefined ? "" : `${ratio.toFixed(2)} of ${peer}`;
}

function describeVerdict(verdict: Verdict): string {
  const aim = describeAim(verdict.aim);
  const expected = aim === "" ? "" : `(aim ${aim} ${verdict.met ? "✓" : "✗ missed"})`;
  return `${describeRatio(verdict)} ${expected}`.trim();
}

/** The table of a page. */
export function markdownTable(group: Group, results: readonly RowResult[]): string {
  const head = ["", ...group.columns, "ratio", "aim", ""];
  const lines = [head, head.map(() => "---")];
  for (const { summary, unit, contenders, verdicts, error } of results) {
    const cells = group.columns.map((column) => {
      const figures = contenders.find((each) => each.name === column);
      return figures === undefined ? "" : `${short(figures.median)} ±${spreadOf(figures)}`;
    });
    const say = (of: (verdict: Verdict) => string) => verdicts.map(of).join("<br>");
    lines.push([
      `${summary} (${unit})`,
      ...(error === undefined ? cells : [error]),
      say(describeRatio),
      say(({ aim }) => describeAim(aim)),
      say(({ aim, met }) => (describeAim(aim) === "" ? "" : met ? "met" : "**missed**")),
    ]);
  }
  return lines.map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}
