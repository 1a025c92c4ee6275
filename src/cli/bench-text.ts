/** What `vbdkit bench` tells a person: the line while it measures, then a table, and pictures of how long requests took. */
import type { LatencyOctave } from "../trace/latency-histogram.ts";
import { formatDuration } from "../util/duration.ts";
import { formatSize } from "../util/size.ts";
import { describeRing, places } from "./banner.ts";
import type { BenchRequests, BenchResult } from "./bench-disk.ts";
import { describeWorkload } from "./bench-plan.ts";
import { type Column, columnLines } from "./columns.ts";
import { paint, table } from "./output.ts";
import { progressBar } from "./progress.ts";

/** Longer bars tell no more. */
const MAX_BAR_CELLS = 48;
/** A bar ends within a cell: eighths, the emptiest first. */
const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** " 42% [##########              ] 2.1 s of 5 s  812,345 IOPS  3.1 GiB/s" of milliseconds, and of requests that were
 * answered in them. */
export function benchLine(
  done: number,
  total: number,
  requests: number,
  blockBytes: number,
): string {
  const rate = done > 0 ? (requests / done) * 1000 : 0;
  const time = `${(done / 1000).toFixed(1)} s of ${formatDuration(total)}`;
  const bytes = `${formatSize(Math.round(rate * blockBytes))}/s`;
  return `${progressBar(done / total)} ${time}  ${whole(rate)} IOPS  ${bytes}`;
}

/** For a terminal, or a page, of so many columns. */
export function benchText(result: BenchResult, width: number): string {
  const { reads, writes } = result;
  const rows: Row[] = [
    ...(reads === undefined ? [] : [{ name: "read", ...reads }]),
    ...(writes === undefined ? [] : [{ name: "write", ...writes }]),
  ];
  const pictures = rows
    .filter(({ requests }) => requests > 0)
    .flatMap(({ name, histogramMicroseconds }) => [
      "",
      rows.length === 1 ? "latency" : `latency of each ${name}`,
      ...histogramLines(histogramMicroseconds, width),
    ]);
  return [head(result), "", ...columnLines(columns, rows, width), ...pictures].join("\n");
}

function head(result: BenchResult): string {
  const { disk, size, engine, workload, ring, seconds, stopped, processor } = result;
  const used = workload.bytes === size ? "" : `, in the first ${formatSize(workload.bytes)}`;
  const cut = stopped ? ", until it was stopped" : "";
  const time = formatDuration(seconds * 1000);
  const { microsecondsPerRequest, userSeconds, systemSeconds } = processor;
  const share = seconds > 0 ? Math.round(((userSeconds + systemSeconds) / seconds) * 100) : 0;
  const where = ring === undefined ? "" : `, backend in ${places[ring.link]}`;
  const rows = [
    ["load", `${describeWorkload(workload)}${used}, for ${time}${cut}`],
    ["engine", `${engine ?? "none"}${where}`],
    ["ring", ring === undefined ? "none: the disk itself" : describeRing(ring.negotiated)],
    ["processor", `${microseconds(microsecondsPerRequest)} for a request, ${share} % of a core`],
  ];
  if (ring !== undefined) {
    const { commandsPerRequest, eventsPerRequest } = ring;
    const each = `${commandsPerRequest.toFixed(2)} commands and ${eventsPerRequest.toFixed(2)} events`;
    rows.push(["on the ring", `${each} for a request`]);
  }
  return `${paint("bold", `${disk}  ${formatSize(size)}`)}\n${table(rows, "  ")}`;
}

type Row = BenchRequests & { readonly name: string };

const columns: readonly Column<Row>[] = [
  { title: "", left: true, cell: ({ name }) => name },
  { title: "IOPS", cell: ({ iops }) => whole(iops) },
  { title: "MiB/s", cell: ({ bytesPerSecond }) => (bytesPerSecond / 2 ** 20).toFixed(1) },
  latency("mean", "mean"),
  latency("p50", "p50"),
  latency("p95", "p95", 2),
  latency("p99", "p99"),
  latency("p99.9", "p999", 1),
  latency("max", "most"),
];

function latency(
  title: string,
  key: keyof BenchRequests["latencyMicroseconds"],
  expendable = 0,
): Column<Row> {
  return {
    title,
    expendable,
    cell: ({ latencyMicroseconds }) => microseconds(latencyMicroseconds[key]),
  };
}

/** A line for each power of two: its end, how many requests were faster and no faster than the line before, their share
 * in digits and as a bar. */
export function histogramLines(octaves: readonly LatencyOctave[], width: number): string[] {
  const all = octaves.reduce((sum, { requests }) => sum + requests, 0);
  const most = Math.max(...octaves.map(({ requests }) => requests));
  const labels = columnLines(
    [
      { title: "", cell: () => "<" },
      { title: "", cell: ({ to }) => microseconds(to) },
      { title: "", cell: ({ requests }) => whole(requests) },
      { title: "", cell: ({ requests }) => `${((requests / all) * 100).toFixed(2)} %` },
    ] satisfies Column<LatencyOctave>[],
    octaves,
  ).slice(1);
  const room = width - 2 - Math.max(...labels.map(({ length }) => length)) - 2;
  const cells = Math.max(1, Math.min(MAX_BAR_CELLS, room));
  return octaves.map(({ requests }, index) =>
    `  ${labels[index]!}  ${paint("cyan", bar(requests / most, requests > 0, cells))}`.trimEnd(),
  );
}

/** What is there is seen, however little. */
function bar(share: number, seen: boolean, cells: number): string {
  const eighths = Math.max(Math.round(share * cells * 8), seen ? 1 : 0);
  return "█".repeat(Math.floor(eighths / 8)) + EIGHTHS[eighths % 8]!;
}

function microseconds(value: number): string {
  return formatDuration(value / 1000);
}

function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}
