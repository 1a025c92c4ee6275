/** What `vbdkit serve` and `vbdkit machine` say when they run: what there is, what was negotiated, and things to try that
 * work as pasted. */

import { existsSync, realpathSync } from "node:fs";
import { delimiter, isAbsolute, join, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { quote } from "../util/quote.ts";
import { formatSize } from "../util/size.ts";
import { paint, table } from "./output.ts";
import type { ServedDiskInfo, ServerInfo } from "./server-info.ts";

export function banner(info: ServerInfo): string {
  const empty = info.disks.length === 0;
  const tries = empty ? machineTries(info) : diskTries(info);
  return [
    ...(empty ? describeMachine(info) : info.disks.flatMap(describeDisk)),
    "",
    "Try, in another terminal:",
    table(tries.map(([command, why]) => [`  ${command}`, paint("dim", `# ${why}`)])),
    "",
    "Ctrl-C stops it.",
  ].join("\n");
}

type Tries = readonly (readonly [command: string, why: string])[];

function diskTries(info: ServerInfo): Tries {
  const uri = quote(info.uri);
  const command = vbdkit();
  return [
    [`nbdinfo ${uri}`, "what an NBD client sees"],
    [`nbdcopy --progress ${uri} copy.img`, "copy it"],
    [`qemu-img info ${uri}`, "what QEMU sees"],
    [lookIntoXenStore(info), "both drivers' nodes"],
    [`${command} info ${quote(info.directory)}`, "ring, grants and counters"],
    [`${command} top ${quote(info.directory)}`, "what goes on, until q"],
  ];
}

function machineTries(info: ServerInfo): Tries {
  const command = vbdkit();
  const machine = `--machine ${quote(info.directory)}`;
  const guest = info.domains[0]!.name;
  return [
    [
      `${command} attach ${machine} ${guest} 'vdev=xvda,target=memory 1G'`,
      "a disk; it says its URI",
    ],
    [`${command} list ${machine}`, "guests and disks"],
    [lookIntoXenStore(info), "both drivers' nodes"],
    [`${command} detach ${machine} ${guest} xvda`, "and gone"],
  ];
}

function lookIntoXenStore({ xenstoreSocket }: ServerInfo): string {
  return `XENSTORED_PATH=${quote(xenstoreSocket)} xenstore-ls -f`;
}

function describeMachine({ domains, directory, xenstoreSocket }: ServerInfo): string[] {
  const guests = domains.map(({ name, domid }) => `${name} (${domid})`);
  const rows = [
    ["guests", guests.join(", ")],
    ["folder", directory],
    ["xenstore", xenstoreSocket],
  ];
  return [paint("bold", "a machine with Domain-0 (0)"), table(rows, "  ")];
}

function describeDisk({ disk, vdev, uri, store, attachment }: ServedDiskInfo): string[] {
  const { negotiated, link, backend } = attachment;
  const size = `${formatSize(store.size)}${store.readOnly ? ", read-only" : ""}`;
  const features = [
    negotiated.persistent && "persistent grants",
    negotiated.flush && "flush",
    negotiated.discard && "discard",
  ];
  const ring = [
    `${negotiated.ringPages} ${negotiated.ringPages === 1 ? "page" : "pages"}, ${negotiated.ringSlots} slots`,
    `${negotiated.maxSegments} segments${negotiated.indirect ? " (indirect)" : ""}`,
    ...features.filter((feature) => feature !== false),
    negotiated.protocol,
  ];
  const rows = [
    ["uri", paint("cyan", uri)],
    ["engine", `${backend.store.engine ?? "none"}, backend in ${places[link]}`],
    ["ring", ring.join(", ")],
  ];
  return [paint("bold", `${vdev}  ${disk}  ${size}`), table(rows, "  ")];
}

const places = {
  thread: "this thread",
  worker: "a worker",
  process: "a process of its own",
} as const;

/** What starts this program, from any folder. */
function vbdkit(): string {
  const program = fileURLToPath(new URL("../../bin/vbdkit.js", import.meta.url));
  // What npx fetched, npx finds again.
  if (program.includes(`${sep}_npx${sep}`)) return "npx vbdkit";
  return isOnPath(program) ? "vbdkit" : `node ${quote(program)}`;
}

/** Whether `vbdkit` typed in a shell is this program. npm's own additions to PATH are not the shell's. */
function isOnPath(program: string): boolean {
  const folders = (process.env.PATH ?? "").split(delimiter);
  const found = folders
    .filter((folder) => isAbsolute(folder) && !/\bnode_modules\/\.bin\/?$/.test(folder))
    .map((folder) => join(folder, "vbdkit"))
    .find((path) => existsSync(path));
  return found !== undefined && realpathSync(found) === realpathSync(program);
}
