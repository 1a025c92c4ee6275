/**
 * What `vbdkit top` shows: xentop's columns (tools/xentop/xentop.c) for guests and their disks, and rates between two
 * samples of a server's statistics.
 */
import {
  type DiskStatistics,
  type ServerStatistics,
  sumStatistics,
  type VbdStatistics,
} from "../trace/statistics.ts";
import { type Column, columnLines } from "./columns.ts";
import { paint } from "./output.ts";

interface Row {
  readonly name: string;
  /** Of a guest; a disk has none. */
  readonly vbds: number | undefined;
  readonly statistics: VbdStatistics;
  readonly inFlight: number;
  /** Requests a second. */
  readonly iops: number;
  /** Millions of bytes a second. */
  readonly megabytes: number;
}

const columns: readonly Column<Row>[] = [
  { title: "NAME", width: 9, left: true, cell: (row) => row.name },
  { title: "VBDS", expendable: 5, cell: (row) => row.vbds ?? "-" },
  { title: "VBD_OO", expendable: 4, cell: (row) => row.statistics.oo_req },
  { title: "VBD_RD", width: 8, expendable: 2, cell: (row) => row.statistics.rd_req },
  { title: "VBD_WR", width: 8, expendable: 2, cell: (row) => row.statistics.wr_req },
  { title: "VBD_RSECT", width: 10, expendable: 3, cell: (row) => row.statistics.rd_sect },
  { title: "VBD_WSECT", width: 10, expendable: 3, cell: (row) => row.statistics.wr_sect },
  { title: "IOPS", width: 7, cell: (row) => Math.round(row.iops) },
  { title: "MB/s", width: 7, cell: (row) => row.megabytes.toFixed(1) },
  { title: "FLIGHT", cell: (row) => row.inFlight },
];

/** The table: a line of titles, and for each guest one line and one for each of its disks. Rates are those since the
 * sample before, or since the server began where there is none. */
export function topLines(
  now: ServerStatistics,
  before: ServerStatistics | undefined,
  width?: number,
): string[] {
  return columnLines(columns, rowsOf(now, before), width);
}

/** The table below a line about the server, cut to a terminal of that size. */
export function topScreen(
  now: ServerStatistics,
  before: ServerStatistics | undefined,
  size: { readonly columns: number; readonly rows: number },
): string[] {
  const head = `vbdkit ${now.version}, process ${now.pid}, up ${uptime(now.uptimeSeconds)}; q quits`;
  const [titles, ...rows] = topLines(now, before, size.columns);
  const lines = [paint("inverse", titles!.slice(0, size.columns).padEnd(size.columns))];
  // Where there is hardly room, the disks come before the words.
  if (size.rows > rows.length + 1) lines.unshift(head.slice(0, size.columns));
  const room = size.rows - lines.length;
  if (rows.length > room) {
    const left = rows.length - Math.max(room - 1, 0);
    rows.splice(Math.max(room - 1, 0), rows.length, `... and ${left} more`);
  }
  return [...lines, ...rows.map((row) => row.slice(0, size.columns))].slice(0, size.rows);
}

function rowsOf(now: ServerStatistics, before: ServerStatistics | undefined): Row[] {
  const seconds = now.uptimeSeconds - (before?.uptimeSeconds ?? 0);
  const guests = Map.groupBy(now.disks, (disk) => disk.domain);
  return [...guests.values()].flatMap((disks) => {
    const rows = disks.map((disk) => diskRow(disk, earlier(disk, before), seconds));
    const sum = (value: (row: Row) => number) => rows.reduce((all, row) => all + value(row), 0);
    return [
      {
        name: disks[0]!.guest,
        vbds: disks.length,
        statistics: sumStatistics(disks.map(({ statistics }) => statistics)),
        inFlight: sum((row) => row.inFlight),
        iops: sum((row) => row.iops),
        megabytes: sum((row) => row.megabytes),
      },
      ...rows,
    ];
  });
}

/** The same disk a sample before; counters that went back began anew when its ring was connected again. */
function earlier(
  disk: DiskStatistics,
  before: ServerStatistics | undefined,
): VbdStatistics | undefined {
  const statistics = before?.disks.find(
    ({ vdev, domain }) => vdev === disk.vdev && domain === disk.domain,
  )?.statistics;
  if (statistics === undefined) return undefined;
  const began = requests(statistics) > requests(disk.statistics);
  return began ? undefined : statistics;
}

function diskRow(
  { vdev, statistics, inFlight }: DiskStatistics,
  before: VbdStatistics | undefined,
  seconds: number,
): Row {
  const rate = (value: (statistics: VbdStatistics) => number) =>
    seconds > 0 ? (value(statistics) - (before === undefined ? 0 : value(before))) / seconds : 0;
  return {
    name: `  ${vdev}`,
    vbds: undefined,
    statistics,
    inFlight,
    iops: rate(requests),
    megabytes: rate(({ rd_sect, wr_sect }) => ((rd_sect + wr_sect) * 512) / 1e6),
  };
}

function requests({ rd_req, wr_req, f_req, ds_req }: VbdStatistics): number {
  return rd_req + wr_req + f_req + ds_req;
}

/** 3:07:05 */
function uptime(seconds: number): string {
  const two = (value: number) => String(Math.floor(value)).padStart(2, "0");
  return `${Math.floor(seconds / 3600)}:${two((seconds / 60) % 60)}:${two(seconds % 60)}`;
}
