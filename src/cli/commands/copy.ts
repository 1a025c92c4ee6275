/** `vbdkit copy`: one disk onto another. What is known to be zero is not read, and costs the destination little. */
import { existsSync, rmSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { Command, Option } from "commander";
import type { Disk } from "../../index.ts";
import type { EngineChoice, StoreSpec } from "../../store/block-store.ts";
import { formatSize } from "../../util/size.ts";
import { copyDisk } from "../copy-disk.ts";
import { checkName, splitDisk } from "../disks.ts";
import { UsageError } from "../errors.ts";
import { print, printJson, printNote } from "../output.ts";
import { Progress } from "../progress.ts";
import { StopSignal } from "../signals.ts";
import { makeSparse } from "../sparse-file.ts";

interface CopyOptions {
  targetIsZero?: true;
  allowLarger?: true;
  engine: EngineChoice;
  json?: true;
}

export function copyCommand(): Command {
  return new Command("copy")
    .description("copy a disk onto another; holes stay holes")
    .argument("<SOURCE>", "a file, an NBD URI, or a quoted 'DRIVER NAME key=value'")
    .argument("<DESTINATION>", "the same, or - for standard output; a file that is missing is made")
    .option("--target-is-zero", "the destination reads as zeroes already; write data alone")
    .option("--allow-larger", "the destination may be larger; the rest of it is left alone")
    .addOption(
      new Option("--engine <ENGINE>", "how files are read and written")
        .choices(["auto", "io_uring", "pread", "libuv"])
        .default("auto"),
    )
    .option("--json", "print what was done as JSON")
    .option("--verbose", "stack traces too")
    .addHelpText(
      "after",
      `
A destination that exists must have the source's size: nothing else is overwritten.

Examples:
  vbdkit copy disk.img backup.img
  vbdkit copy nbd://host/export disk.img
  vbdkit copy nbd://host/export - | zstd > disk.img.zst
  vbdkit copy 'memory 1G' 'nbd+unix:///?socket=/tmp/nbd.sock'
`,
    )
    .action(copy);
}

async function copy(from: string, to: string, options: CopyOptions): Promise<void> {
  using stop = new StopSignal();
  const { signal } = stop;
  try {
    if (from === "-") throw new UsageError("a disk is read at any place: copy from a file, not -");
    if (to === "-") await copyToOutput(from, options, signal);
    else await copyToDisk(from, to, options, signal);
  } catch (error) {
    // Whatever failed because of it, the person asked for it.
    signal.throwIfAborted();
    throw error;
  }
}

async function openDisk(
  spec: StoreSpec,
  readOnly: boolean,
  { engine }: CopyOptions,
  signal: AbortSignal,
): Promise<Disk> {
  const { Disk, openStore } = await import("../../index.ts");
  const { threadReactor } = await import("../../io/reactor.ts");
  return new Disk(await openStore(spec, { readOnly, engine, signal }), threadReactor());
}

/** Every byte of the disk, one after the other, zeroes too. */
async function copyToOutput(
  from: string,
  options: CopyOptions,
  signal: AbortSignal,
): Promise<void> {
  if (options.json) throw new UsageError("--json: standard output is where the disk goes");
  if (process.stdout.isTTY) {
    throw new UsageError("a disk on a terminal helps nobody: redirect standard output");
  }
  await using source = await openDisk(await specOf(from), true, options, signal);
  await pipeline(source.readable({ signal }), process.stdout, { end: false, signal });
}

async function copyToDisk(
  from: string,
  to: string,
  options: CopyOptions,
  signal: AbortSignal,
): Promise<void> {
  const [sourceSpec, targetSpec] = await Promise.all([specOf(from), specOf(to)]);
  const targetPath = pathOf(targetSpec);
  await refuseSame(sourceSpec, targetSpec);
  await using source = await openDisk(sourceSpec, true, options, signal);
  const { size } = source.info;
  const made = targetPath !== undefined && (await makeSparse(targetPath, size));
  try {
    await using target = await openDisk(targetSpec, false, options, signal);
    refuseSize(to, targetPath !== undefined, target.info.size, size, options.allowLarger === true);
    using progress = new Progress(size);
    const began = performance.now();
    const { copied } = await copyDisk(source, target, {
      targetIsZero: made || options.targetIsZero === true,
      signal,
      onunlisted: ({ message }) => printNote(`${from} is read whole, holes too: ${message}`),
      onprogress: (done) => progress.update(done),
    });
    const seconds = (performance.now() - began) / 1000;
    const result = { source: from, destination: to, size, copied, made, seconds };
    if (options.json) printJson(result);
    else if (!process.stderr.isTTY) {
      print(`${from} -> ${to}: ${formatSize(copied)} of data in ${formatSize(size)}`);
    }
  } catch (error) {
    // Half a copy that looks like a disk is worse than none.
    if (made) rmSync(targetPath, { force: true });
    throw error;
  }
}

async function specOf(word: string): Promise<StoreSpec> {
  const { parseDisk } = await import("../../index.ts");
  const { driverNames } = await import("../catalogue.ts");
  const drivers = driverNames();
  const words = splitDisk(word, drivers);
  checkName(words, drivers);
  return parseDisk(words);
}

/** The file that a disk is, where it is one. */
function pathOf(spec: StoreSpec): string | undefined {
  return spec.driver === "file" ? spec.parameters.file : undefined;
}

async function refuseSame(source: StoreSpec, target: StoreSpec): Promise<void> {
  const [left, right] = await Promise.all([identityOf(source), identityOf(target)]);
  if (left !== undefined && left === right) throw new Error(`${left} would be copied onto itself`);
}

/** The same for two names of one file or export; undefined where every opening is another disk. */
async function identityOf(spec: StoreSpec): Promise<string | undefined> {
  const path = pathOf(spec);
  if (path !== undefined) return existsSync(path) ? await realpath(path) : undefined;
  const { uri, export: name } = spec.parameters;
  if (spec.driver !== "nbd" || uri === undefined) return undefined;
  const { formatNbdUri, parseNbdUri } = await import("../../nbd/uri.ts");
  const parsed = parseNbdUri(uri);
  return formatNbdUri({ ...parsed, exportName: name ?? parsed.exportName });
}

function refuseSize(
  name: string,
  isFile: boolean,
  target: number,
  source: number,
  allowLarger: boolean,
): void {
  if (target === source || (allowLarger && target > source)) return;
  const remedy = isFile ? "remove it" : `make it ${source} bytes`;
  const other = target > source ? "say --allow-larger" : "choose another destination";
  const sizes = `${name} is ${formatSize(target)}, the source ${formatSize(source)}`;
  throw new Error(`${sizes}: ${remedy}, or ${other}`);
}
