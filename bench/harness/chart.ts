/**
 * A group's results as a picture: a bar for each contender of a row, as long as its median by the best of the row, with a
 * line from its least to its most, and a notch where ours has to reach.
 */
import type { Group } from "./group.ts";
import type { Figures, RowResult, Verdict } from "./rounds.ts";
import { short } from "./table.ts";

const WIDTH = 960;
const MARGIN = 24;
const LABEL_WIDTH = 290;
/** Room for the figure behind the longest bar. */
const FIGURE_WIDTH = 130;
const BAR = 14;
const BAR_GAP = 3;
const ROW_GAP = 18;
const HEAD = 84;
/** Ours stands out; peers are told apart by tone, also in grey (ColorBrewer's blues and greys). */
const OURS = "#d9480f";
const PEERS = ["#1c4e80", "#4a86c5", "#9dbfe3", "#5f6b76", "#a3adb8", "#c9d1d9"];

export function chart(group: Group, results: readonly RowResult[], about: string): string {
  const rows = results.filter(({ contenders }) => contenders.length > 0);
  const parts: string[] = [
    text(MARGIN, 30, group.name, 'font-size="20" font-weight="bold"'),
    text(MARGIN, 50, group.summary, 'font-size="13"'),
    ...legend(group),
  ];
  let y = HEAD;
  for (const row of rows) {
    parts.push(...drawRow(group, row, y));
    y += row.contenders.length * (BAR + BAR_GAP) + ROW_GAP;
  }
  parts.push(text(MARGIN, y + 4, about, 'font-size="11" fill="#666"'));
  const height = y + 20;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="DejaVu Sans, Verdana, sans-serif">`,
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

function colourOf({ columns }: Group, name: string): string {
  const index = columns.indexOf(name);
  return index === 0 ? OURS : PEERS[(index - 1) % PEERS.length]!;
}

function legend(group: Group): string[] {
  let x = MARGIN;
  const parts = group.columns.flatMap((name) => {
    const at = x;
    // Letters of this size are seven units wide at most.
    x += 30 + name.length * 7;
    return [
      `<rect x="${at}" y="60" width="12" height="12" fill="${colourOf(group, name)}"/>`,
      text(at + 17, 70, name, 'font-size="12"'),
    ];
  });
  return [...parts, notch(x, 59), text(x + 7, 70, "aim", 'font-size="12"')];
}

function notch(x: number, y: number): string {
  const style = 'stroke="#111" stroke-width="2" stroke-dasharray="3 2"';
  return `<path d="M${round(x)} ${y}v${BAR}" ${style}/>`;
}

function drawRow(group: Group, row: RowResult, top: number): string[] {
  const { contenders, verdicts, unit } = row;
  const height = contenders.length * (BAR + BAR_GAP);
  const room = WIDTH - MARGIN - LABEL_WIDTH - FIGURE_WIDTH;
  const left = LABEL_WIDTH;
  const scale = room / Math.max(...contenders.map(({ most }) => most), Number.MIN_VALUE);
  const middle = top + height / 2;
  const parts = [
    text(left - 12, middle, row.summary, 'font-size="12" text-anchor="end"'),
    text(
      left - 12,
      middle + 14,
      row.lessIsBetter ? `${unit}, less is better` : unit,
      'font-size="11" text-anchor="end" fill="#666"',
    ),
    `<line x1="${left}" y1="${top - 2}" x2="${left}" y2="${top + height - 1}" stroke="#999"/>`,
  ];
  contenders.forEach((figures, index) => {
    const y = top + index * (BAR + BAR_GAP);
    parts.push(...drawBar(figures, colourOf(group, figures.name), left, y, scale));
    if (index > 0) return;
    for (const verdict of verdicts) {
      const x = left + aimOf(verdict, row) * scale;
      if (!(x < WIDTH - MARGIN)) continue;
      parts.push(notch(x, y));
    }
  });
  return parts;
}

function drawBar(figures: Figures, fill: string, x: number, y: number, scale: number): string[] {
  const { median, least, most } = figures;
  const middle = y + BAR / 2;
  const [from, to] = [round(x + least * scale), round(x + most * scale)];
  return [
    `<rect x="${x}" y="${y}" width="${round(median * scale)}" height="${BAR}" fill="${fill}"/>`,
    `<path d="M${from} ${middle}H${to}M${from} ${middle - 3}v6M${to} ${middle - 3}v6" stroke="#111" fill="none"/>`,
    text(Math.max(to, x) + 6, y + BAR - 3, short(median), 'font-size="12"'),
  ];
}

/** The figure that ours needs for the aim; NaN where there is none. */
function aimOf({ aim, peer }: Verdict, { contenders, lessIsBetter }: RowResult): number {
  if ("most" in aim) return aim.most;
  if (aim.least === undefined) return Number.NaN;
  const { median } = contenders.find(({ name }) => name === peer)!;
  return lessIsBetter ? median / aim.least : median * aim.least;
}

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replace(/[&<>]/g, (char) => `&#${char.charCodeAt(0)};`);
  return `<text x="${round(x)}" y="${round(y)}" ${attributes}>${escaped}</text>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
