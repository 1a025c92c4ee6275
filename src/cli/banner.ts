/** What `vbdkit serve`, `vbdkit machine` and `vbdkit connect` say when they run: what there is, what was negotiated, and
 * things to try that work as pasted. */

import { existsSync, realpathSync } from "node:fs";
import { delimiter, isAbsolute, join, sep } from "node:path";
import { fileURLToPath } from "node:url";
import type { Negotiated } from "../block/features.ts";
import { quote } from "../util/quote.ts";
import { formatSize } from "../util/size.ts";
import type { ConnectInfo } from "./connected-server.ts";
import { paint, table } from "./output.ts";
import type { ServedDiskInfo, ServerInfo } from "./server-info.ts";

export function banner(info: ServerInfo): string {
  return info.disks.length === 0
    ? greeting(describeMachine(info), machineTries(info))
    : greeting(info.disks.flatMap(describeDisk), diskTries(info));
}

/** What `vbdkit connect` says. */
export function connectBanner(info: ConnectInfo): string {
  const size = `${formatSize(info.store.size)}${info.store.readOnly ? ", read-only" : ""}`;
  const rows = [
    ["uri", paint("cyan", info.uri)],
    ["backend", info.backendPath],
    ["ring", describeRing(info.negotiated)],
  ];
  const description = [paint("bold", `${info.vdev}  ${info.disk}  ${size}`), table(rows, "  ")];
  return greeting(description, clientTries(info.uri));
}

function greeting(description: readonly string[], tries: Tries): string {
  return [
    ...description,
    "",
    "Try, in another terminal:",
    table(tries.map(([command, why]) => [`  ${command}`, paint("dim", `# ${why}`)])),
    "",
    "Ctrl-C stops it.",
  ].join("\n");
}

type Tries = readonly (readonly [command: string, why: string])[];

function clientTries(nbdUri: string): Tries {
  const uri = quote(nbdUri);
  return [
    [`nbdinfo ${uri}`, "what an NBD client sees"],
    [`nbdcopy --progress ${uri} copy.img`, "copy it"],
    [`qemu-img info ${uri}`, "what QEMU sees"],
  ];
}

function diskTries(info: ServerInfo): Tries {
  const command = vbdkit();
  return [
    ...clientTries(info.uri),
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
  const rows = [
    ["uri", paint("cyan", uri)],
    ["engine", `${backend.store.engine ?? "none"}, backend in ${places[link]}`],
    ["ring", describeRing(negotiated)],
  ];
  return [paint("bold", `${vdev}  ${disk}  ${size}`), table(rows, "  ")];
}

export function describeRing(negotiated: Negotiated): string {
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
  return ring.join(", ");
}

/** Where the backend of each link is. */
export const places = {
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
