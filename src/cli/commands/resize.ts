/** `vbdkit resize DOMAIN VDEV SIZE`: another size for a disk of a running machine, seen by its guest at once. */
import { Command } from "commander";
import { formatSize, parseSize } from "../../util/size.ts";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import type { ListedDisk } from "../disk-list.ts";
import { UsageError } from "../errors.ts";
import { addDomainArgument, addMachineOption } from "../options.ts";
import { print, printJson } from "../output.ts";
import { StopSignal } from "../signals.ts";

interface ResizeOptions {
  machine?: string;
  shrink?: true;
  json?: true;
}

export function resizeCommand(): Command {
  const command = addDomainArgument(
    new Command("resize").description(
      "change the size of a disk of a running machine while its guest uses it",
    ),
  )
    .argument("<VDEV>", "the disk: xvda, or its number")
    .argument("<SIZE>", "bytes, or 512M, 2G; +SIZE is so much more");
  return addMachineOption(command)
    .option("--shrink", "smaller, losing what is at its end")
    .option("--json", "print the disk as JSON")
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
The guest sees the new size at once (both ends write it to the xenstore, as Linux's do). An NBD client sees it when it
connects anew.

Examples:
  vbdkit resize web xvda 2G
  vbdkit resize web xvda +512M
`,
    )
    .action(resize);
}

async function resize(
  domain: string,
  vdev: string,
  text: string,
  options: ResizeOptions,
): Promise<void> {
  using stop = new StopSignal();
  const relative = text.startsWith("+");
  let size: number;
  try {
    size = parseSize(relative ? text.slice(1) : text);
  } catch (error) {
    throw new UsageError(`${text}: ${(error as Error).message}`);
  }
  const fields = { domain, vdev, size, relative, shrink: options.shrink === true };
  const server = await findServer(options.machine);
  const how = { fields, patient: true, signal: stop.signal };
  const disk = await ask<ListedDisk>(server, "resize", how);
  if (options.json) printJson(disk);
  else print(`${disk.vdev} of ${disk.domain}: ${formatSize(disk.size)}`);
}
