/** `vbdkit attach DOMAIN DISKSPEC`: xl block-attach, on a running machine. */
import { Command } from "commander";
import { formatSize } from "../../util/size.ts";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import type { ListedDisk } from "../disk-list.ts";
import { UsageError } from "../errors.ts";
import { knobHelp } from "../knobs.ts";
import {
  addDomainArgument,
  addMachineOption,
  addOpenOptions,
  addRingOptions,
  type DiskOptions,
} from "../options.ts";
import { print, printJson } from "../output.ts";
import { StopSignal } from "../signals.ts";

interface AttachOptions extends DiskOptions {
  machine?: string;
  json?: true;
}

export function attachCommand(): Command {
  const command = addDomainArgument(
    new Command("attach").description(
      "attach a disk to a guest of a running machine, as xl block-attach",
    ),
  ).argument("<DISKSPEC...>", "a disk as xl-disk-configuration(5) has it");
  addMachineOption(command);
  addOpenOptions(command);
  addRingOptions(command);
  return command
    .optionsGroup("Options:")
    .option("--json", "print the disk as JSON")
    .option("--verbose", "stack traces")
    .addHelpText("after", () => `\n${knobHelp()}\n${examples}`)
    .action(attach);
}

const examples = `
DISKSPEC is TARGET,FORMAT,VDEV,ACCESS or vdev=VDEV,access=r|rw,format=raw,...,target=DISK, where DISK comes last and is
written as for vbdkit serve, after its filters: [--filter NAME]... [DRIVER] NAME [key=value ...].
Without --machine it is $VBDKIT_MACHINE, or the one machine of yours that runs, or else the Xen host that this is
(--machine xen): then vbdkit daemon serves the disk.

Examples:
  vbdkit attach web disk.img,raw,xvda
  vbdkit attach web 'vdev=xvdb,access=r,target=memory 1G'
  vbdkit attach web 'vdev=xvdc,target=--filter delay disk.img rdelay=10ms' --link process
`;

async function attach(domain: string, words: string[], options: AttachOptions): Promise<void> {
  using stop = new StopSignal();
  const { signal } = stop;
  const [{ attachRequestOf }, { parseXlDisk }] = await Promise.all([
    import("../attach-spec.ts"),
    import("../xl-disk.ts"),
  ]);
  const isDisk = (...text: string[]) => {
    try {
      return parseXlDisk(text) !== undefined;
    } catch {
      return false;
    }
  };
  if (!isDisk(...words) && isDisk(domain)) {
    throw new UsageError(`${domain} is a disk: the DOMAIN that it is for comes first`);
  }
  const fields = attachRequestOf(domain, parseXlDisk(words), options);
  const server = await findServer(options.machine);
  const disk = await ask<ListedDisk>(server, "attach", { fields, patient: true, signal });
  if (options.json) return printJson(disk);
  const access = disk.access === "r" ? ", read-only" : "";
  const where = disk.uri ?? disk.state;
  print(`${disk.vdev} of ${disk.domain}: ${formatSize(disk.size)}${access}, ${where}`);
}
