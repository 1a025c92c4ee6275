/** `vbdkit info`: a disk that nobody serves, opened for a moment; or a running server, asked over its control socket. */
import { statSync } from "node:fs";
import { access, constants } from "node:fs/promises";
import { resolve } from "node:path";
import { Command } from "commander";
import type { BlockStore, BlockStoreInfo, Extent, StoreSpec } from "../../store/block-store.ts";
import { quote } from "../../util/quote.ts";
import { formatSize } from "../../util/size.ts";
import { ask } from "../ask.ts";
import { findMachine } from "../control.ts";
import { checkName } from "../disks.ts";
import { UsageError } from "../errors.ts";
import { collect } from "../options.ts";
import { fields, paint, print, printJson, table } from "../output.ts";
import type { ServerInfo } from "../server-info.ts";

/** A disk in more pieces than this is described by those: nobody reads a longer sum, and finding it takes minutes. */
const MAX_RUNS = 100_000;

interface InfoOptions {
  verbose?: true;
  filter?: string[];
  machine?: string;
  map?: true;
  json?: true;
}

export function infoCommand(): Command {
  return new Command("info")
    .description("what a disk is: size, blocks, features, extents; or what a running server does")
    .argument(
      "[DISK...]",
      "[DRIVER] NAME [key=value ...], an NBD URI, or a running server's folder",
    )
    .usage("[OPTION...] DISK|URI|FOLDER")
    .option("--filter <NAME>", "look through a filter; the first is outermost", collect)
    .option("--machine <DIR>", "the folder of a running server (default: $VBDKIT_MACHINE)")
    .option("--map", "list the extents")
    .option("--json", "print JSON")
    .option("--verbose", "every counter of a running server; and stack traces")
    .addHelpText(
      "after",
      `
A folder that vbdkit serve made, a socket in it, or the nbd+unix URI of such a socket is asked for what was
negotiated and for its counters, read now from ring pages and grant table.

Examples:
  vbdkit info disk.img
  vbdkit info --map --json disk.img
  vbdkit info --filter cow golden.img
  vbdkit info nbd://localhost/export
  vbdkit info /tmp/vbdkit-x1y2z3
`,
    )
    .action(info);
}

async function info(words: string[], options: InfoOptions): Promise<void> {
  const machine =
    options.machine ??
    (words.length === 1 ? findMachine(words[0]!) : undefined) ??
    (words.length === 0 ? process.env.VBDKIT_MACHINE : undefined);
  if (machine !== undefined && (options.map === undefined || !isUri(words))) {
    const server = await ask<ServerInfo>(machine, "info");
    if (options.map) {
      const uris = server.disks.map(({ uri }) => quote(uri)).join(", ");
      throw new UsageError(`--map is of a disk: instead of the server, name ${uris}`);
    }
    if (options.json) printJson(server);
    else print(describeServer(server, options.verbose === true));
    return;
  }
  if (words.length === 0) {
    throw new UsageError("info needs a disk, an NBD URI or the folder of a running server");
  }
  const { driverNames } = await import("../catalogue.ts");
  checkName(words, driverNames());
  refuseSocket(words[0]!);
  const { openStore, parseDisk } = await import("../../index.ts");
  const spec = parseDisk(words, options.filter ?? []);
  const { disk, readOnly } = asItIs(spec);
  await using store = await openStore(disk, { readOnly });
  const { map, ...extents } = await summarize(store);
  const facts = { ...store.info, ...(await factsOf(spec)) };
  const described = { disk: words.join(" "), ...facts, extents };
  if (options.json) printJson(options.map ? { ...described, map } : described);
  else print(options.map ? describeMap(map) : describeStore(described.disk, facts, extents));
}

/** The disk as info opens it: a file for reading beside those who write to it, anything else as a guest would have it,
 * to learn whether it may be written. */
function asItIs(spec: StoreSpec): { disk: StoreSpec; readOnly: boolean } {
  if (spec.driver !== "file") return { disk: spec, readOnly: spec.filters.length > 0 };
  return { disk: { ...spec, parameters: { shared: "on", ...spec.parameters } }, readOnly: true };
}

/** What a file is, where we opened it for reading alone: whether it could discard is not known then. */
async function factsOf({ driver, parameters, filters }: StoreSpec) {
  if (driver !== "file" || filters.length > 0) return {};
  const readOnly = await access(parameters.file!, constants.W_OK).then(
    () => false,
    () => true,
  );
  return { readOnly, discard: undefined };
}

function isUri(words: readonly string[]): boolean {
  return words.length === 1 && /^nbds?\+unix:/.test(words[0]!);
}

/** A socket that is in no server's folder tells nothing of itself. */
function refuseSocket(name: string): void {
  if (statSync(name, { throwIfNoEntry: false })?.isSocket() !== true) return;
  const uri = quote(`nbd+unix:///?socket=${encodeURI(resolve(name))}`);
  throw new UsageError(`${name}: is a socket; if an NBD server listens there, say ${uri}`);
}

interface Extents {
  /** Bytes of each kind. */
  data: number;
  hole: number;
  zero: number;
  runs: number;
  /** Whether the sums cover the whole disk. */
  complete: boolean;
}

async function summarize(store: BlockStore): Promise<Extents & { map: Extent[] }> {
  const sums = { data: 0, hole: 0, zero: 0, runs: 0, complete: true, map: [] as Extent[] };
  let previous: Extent | undefined;
  for await (const extent of store.extents(0, store.info.size)) {
    if (extent.hole) sums.hole += extent.length;
    else if (extent.zero) sums.zero += extent.length;
    else sums.data += extent.length;
    if (previous?.hole === extent.hole && previous.zero === extent.zero) {
      previous = { ...previous, length: previous.length + extent.length };
      sums.map[sums.map.length - 1] = previous;
      continue;
    }
    if (sums.runs === MAX_RUNS) {
      sums.complete = false;
      break;
    }
    sums.runs++;
    previous = extent;
    sums.map.push(extent);
  }
  return sums;
}

function describeStore(disk: string, info: BlockStoreInfo, extents: Extents): string {
  const { size, engine, block, discard, native, ...rest } = info;
  const part = (bytes: number) => `${formatSize(bytes)}`;
  const rows = [
    ["size", `${formatSize(size)} (${size} bytes)`],
    ["engine", engine ?? "none"],
    ["read-only", rest.readOnly ? "yes" : "no"],
    ["blocks", `${part(block.minimum)} to ${part(block.maximum)}, best ${part(block.preferred)}`],
    ...(discard === undefined ? [] : [["discard", `in units of ${part(discard.granularity)}`]]),
    ["does itself", [...native].join(", ") || "reads and writes"],
    ["shareable", rest.shareable ? "yes" : "no"],
    [
      "extents",
      `${part(extents.data)} data, ${part(extents.zero)} zeroes, ${part(extents.hole)} holes, in ${extents.complete ? "" : "more than "}${extents.runs} ${extents.runs === 1 ? "run" : "runs"}`,
    ],
  ];
  return `${paint("bold", disk)}\n${table(rows, "  ")}`;
}

/** As `nbdinfo --map`: offset, length, type, name. */
function describeMap(map: readonly Extent[]): string {
  const width = Math.max(1, ...map.map((extent) => String(extent.offset + extent.length).length));
  return map
    .map(({ offset, length, hole, zero }) => {
      const type = (hole ? 1 : 0) + (zero ? 2 : 0);
      const name = ["data", "hole", "zero", "hole,zero"][type];
      return `${String(offset).padStart(width)}  ${String(length).padStart(width)}  ${type}  ${name}`;
    })
    .join("\n");
}

function describeServer({ disks, ...server }: ServerInfo, verbose: boolean): string {
  const { version, pid, directory, xenstoreSocket, uptimeSeconds } = server;
  const parts = [
    paint("bold", `vbdkit ${version}, process ${pid}`),
    fields({ folder: directory, xenstoreSocket, uptimeSeconds }, "  "),
  ];
  for (const { attachment, store, domain, vdev, uri, disk, export: name } of disks) {
    const { backend, negotiated, ring, frontend } = attachment;
    const facts = { domain, disk, size: formatSize(store.size), export: name || "(default)", uri };
    const { negotiated: offered, ...ofBackend } = backend;
    const { link, frontendPath, backendPath } = attachment;
    const long = { ...attachment, vdev: undefined, backend: { offered, ...ofBackend } };
    const brief = { link, frontendPath, backendPath, negotiated, ring };
    const counted = { statistics: backend.statistics, grants: frontend.grants };
    parts.push(
      paint("bold", vdev),
      fields({ ...facts, ...(verbose ? long : { ...brief, ...counted }) }, "  "),
    );
  }
  if (!verbose) parts.push("More with --verbose.");
  return parts.join("\n");
}
