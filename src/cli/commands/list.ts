/** `vbdkit list`: the guests of a running machine and their disks, in xl block-list's columns and ours. */
import { Command, Option } from "commander";
import { formatSize } from "../../util/size.ts";
import { ask } from "../ask.ts";
import { type Column, columnLines } from "../columns.ts";
import { findServer } from "../control.ts";
import type { ListedDisk, ListedDomain } from "../disk-list.ts";
import { addMachineOption } from "../options.ts";
import { print, printJson } from "../output.ts";

interface ListOptions {
  machine?: string;
  json?: true;
  names?: true;
}

export function listCommand(): Command {
  const command = new Command("list")
    .description("the guests of a running machine and their disks, as xl block-list")
    .argument("[DOMAIN]", "one guest, by name or domid");
  return addMachineOption(command)
    .option("--json", "print JSON")
    .addOption(
      new Option("--names", "print names alone: of the guests, or of DOMAIN's disks").conflicts(
        "json",
      ),
    )
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
Without --machine it is $VBDKIT_MACHINE, or the one machine of yours that runs, or else the Xen host that this is
(--machine xen).

Examples:
  vbdkit list
  vbdkit list web --json | jq -r '.[0].disks[0].uri'
`,
    )
    .action(async (domain: string | undefined, options: ListOptions) => {
      const server = await findServer(options.machine);
      const fields = domain === undefined ? {} : { domain };
      const domains = await ask<ListedDomain[]>(server, "list", { fields });
      if (options.json) printJson(domains);
      else if (options.names) for (const name of namesOf(domains, domain)) print(name);
      else print(listLines(domains).join("\n"));
    });
}

function namesOf(domains: readonly ListedDomain[], domain: string | undefined): string[] {
  if (domain === undefined) return domains.map(({ name }) => name);
  return domains.flatMap(({ disks }) => disks.map(({ vdev }) => vdev));
}

interface Row {
  readonly domain: ListedDomain;
  /** A guest without disks has a line, too. */
  readonly disk: ListedDisk | undefined;
}

/** A number or word of a disk; "-" where there is none. */
const of = (value: (disk: ListedDisk) => string | number | undefined) => (row: Row) =>
  (row.disk === undefined ? undefined : value(row.disk)) ?? "-";

const columns: readonly Column<Row>[] = [
  { title: "Name", left: true, cell: ({ domain }) => domain.name },
  { title: "ID", cell: ({ domain }) => domain.domid },
  { title: "State", left: true, cell: ({ domain }) => domain.state ?? "-" },
  { title: "Vdev", left: true, cell: of((disk) => disk.vdev) },
  { title: "BE", cell: of((disk) => disk.backend), expendable: 4 },
  { title: "handle", cell: of((disk) => disk.handle), expendable: 5 },
  { title: "state", left: true, cell: of((disk) => disk.state) },
  { title: "evt-ch", cell: of((disk) => disk.eventChannel), expendable: 6 },
  { title: "ring-ref", cell: of((disk) => disk.ringRef), expendable: 6 },
  { title: "size", cell: of((disk) => formatSize(disk.size)) },
  { title: "access", left: true, cell: of((disk) => disk.access), expendable: 3 },
  { title: "link", left: true, cell: of((disk) => disk.link), expendable: 2 },
  { title: "clients", cell: of((disk) => disk.clients), expendable: 2 },
  { title: "BE-path", left: true, cell: of((disk) => disk.backendPath), expendable: 7 },
  { title: "URI", left: true, cell: of((disk) => disk.uri), expendable: 1 },
  { title: "disk", left: true, cell: of((disk) => disk.disk) },
];

/** A line for each disk, cut to the terminal's columns; then why the dead ones are. */
function listLines(domains: readonly ListedDomain[]): string[] {
  const rows = domains.flatMap((domain): Row[] =>
    domain.disks.length === 0
      ? [{ domain, disk: undefined }]
      : domain.disks.map((disk) => ({ domain, disk })),
  );
  const width = process.stdout.isTTY ? process.stdout.columns : undefined;
  const dead = rows.flatMap(({ domain, disk }) =>
    disk?.error === undefined ? [] : [`${disk.vdev} of ${domain.name}: ${disk.error}`],
  );
  return [...columnLines(columns, rows, width), ...dead];
}
