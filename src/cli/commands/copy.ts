/** `vbdkit copy`: one disk onto another. What is known to be zero is not read, and costs the destination little. */
import { existsSync, rmSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { Command, Option } from "commander";
import { threadReactor } from "../../io/reactor.ts";
import type { EngineChoice, StoreSpec } from "../../store/block-store.ts";
import { formatSize } from "../../util/size.ts";
import { driverNames } from "../catalogue.ts";
import { copyDisk } from "../copy-disk.ts";
import { checkName, splitDisk } from "../disks.ts";
import { print, printJson } from "../output.ts";
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
    .argument("<DESTINATION>", "the same; a file that is missing is made")
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
  vbdkit copy 'memory 1G' 'nbd+unix:///?socket=/tmp/nbd.sock'
`,
    )
    .action(copy);
}

async function copy(from: string, to: string, options: CopyOptions): Promise<void> {
  using stop = new StopSignal();
  const { signal } = stop;
  const { Disk, openStore } = await import("../../index.ts");
  const open = async (spec: StoreSpec, readOnly: boolean) =>
    new Disk(await openStore(spec, { readOnly, engine: options.engine, signal }), threadReactor());
  const [sourceSpec, targetSpec] = await Promise.all([specOf(from), specOf(to)]);
  const targetPath = pathOf(targetSpec);
  await refuseSame(pathOf(sourceSpec), targetPath);
  await using source = await open(sourceSpec, true);
  const { size } = source.info;
  const made = targetPath !== undefined && (await makeSparse(targetPath, size));
  try {
    await using target = await open(targetSpec, false);
    refuseSize(to, target.info.size, size, options.allowLarger === true);
    using progress = new Progress(size);
    const began = performance.now();
    const { copied } = await copyDisk(source, target, {
      targetIsZero: made || options.targetIsZero === true,
      signal,
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
  const drivers = driverNames();
  const words = splitDisk(word, drivers);
  checkName(words, drivers);
  return parseDisk(words);
}

/** The file that a disk is, where it is one. */
function pathOf(spec: StoreSpec): string | undefined {
  return spec.driver === "file" ? spec.parameters.file : undefined;
}

async function refuseSame(source: string | undefined, target: string | undefined): Promise<void> {
  if (source === undefined || target === undefined) return;
  if (!existsSync(source) || !existsSync(target)) return;
  if ((await realpath(source)) === (await realpath(target))) {
    throw new Error(`${source} and ${target} are the same file`);
  }
}

function refuseSize(name: string, target: number, source: number, allowLarger: boolean): void {
  if (target === source || (allowLarger && target > source)) return;
  const advice =
    target > source
      ? "remove it, or say --allow-larger"
      : "remove it, or choose another destination";
  throw new Error(`${name}: is ${formatSize(target)}, the source ${formatSize(source)}; ${advice}`);
}
