/** `vbdkit stats`: the counters of a running server by Linux's names, for people, scripts and Prometheus. */
import { Command, Option } from "commander";
import type { DiskStatistics, RingStatistics, ServerStatistics } from "../../trace/statistics.ts";
import { statisticNames } from "../../trace/statistics.ts";
import { ask } from "../ask.ts";
import { type Column, columnLines } from "../columns.ts";
import { findServer } from "../control.ts";
import { print, printJson } from "../output.ts";

export function statsCommand(): Command {
  return new Command("stats")
    .description("the counters of a running server, by the names of Linux's sysfs")
    .argument("[SERVER]", "its folder, a socket in it, or its URI")
    .option("--json", "print JSON")
    .addOption(
      new Option("--prometheus", "print metrics in Prometheus's text format").conflicts("json"),
    )
    .addHelpText(
      "after",
      `
Without SERVER it is $VBDKIT_MACHINE, or the one server of yours that runs.

Examples:
  vbdkit stats
  vbdkit stats --json /tmp/vbdkit-x1y2z3 | jq .disks[0].statistics.rd_req
  vbdkit stats --prometheus > /var/lib/prometheus/node-exporter/vbdkit.prom
`,
    )
    .action(async (name: string | undefined, options: { json?: true; prometheus?: true }) => {
      const statistics = await ask<ServerStatistics>(await findServer(name), "stats");
      if (options.json) printJson(statistics);
      else if (options.prometheus) {
        const { metricsOf, prometheusText } = await import("../../trace/prometheus.ts");
        process.stdout.write(prometheusText(metricsOf(statistics)));
      } else print(statisticsText(statistics));
    });
}

interface Row extends RingStatistics {
  readonly guest: string;
  readonly vdev: string;
  readonly ring: string | number;
}

const columns: readonly Column<Row>[] = [
  { title: "domain", left: true, cell: (row) => row.guest },
  { title: "vdev", left: true, cell: (row) => row.vdev },
  { title: "ring", cell: (row) => row.ring },
  ...statisticNames.map(
    (name): Column<Row> => ({
      title: name,
      cell: ({ statistics }) => statistics[name],
    }),
  ),
  { title: "in flight", cell: (row) => row.inFlight },
  { title: "errors", cell: (row) => row.errors },
  { title: "mapped", cell: (row) => row.grantCache.mapped },
  { title: "persistent", cell: (row) => row.grantCache.persistent },
  { title: "purged", cell: (row) => row.grantCache.purged },
];

/** A line for each ring, and one for the sums of a disk that has several; then the rules that were broken. */
export function statisticsText({ disks }: ServerStatistics): string {
  const lines = columnLines(columns, disks.flatMap(rowsOf));
  for (const { guest, vdev, rings } of disks) {
    for (const [ring, { brokenRules }] of rings.entries()) {
      for (const [rule, count] of Object.entries(brokenRules)) {
        lines.push(`${guest} ${vdev} ring ${ring}: ${count} refused for ${rule}`);
      }
    }
  }
  return lines.join("\n");
}

function rowsOf(disk: DiskStatistics): Row[] {
  const { guest, vdev, rings } = disk;
  const rows: Row[] = rings.map((ring, index) => ({ ...ring, guest, vdev, ring: index }));
  if (rows.length === 1) return rows;
  const sum = (value: (ring: RingStatistics) => number) =>
    rings.reduce((total, ring) => total + value(ring), 0);
  return [
    {
      ...{ guest, vdev, ring: "all", statistics: disk.statistics, inFlight: disk.inFlight },
      errors: sum((ring) => ring.errors),
      brokenRules: {},
      grantCache: {
        mapped: sum((ring) => ring.grantCache.mapped),
        persistent: sum((ring) => ring.grantCache.persistent),
        purged: sum((ring) => ring.grantCache.purged),
      },
    },
    ...rows,
  ];
}
