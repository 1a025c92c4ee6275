/** `vbdkit save DOMAIN FILE`: xl save, on a running machine. */
import { resolve } from "node:path";
import { Command, Option } from "commander";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import type { ListedDomain } from "../disk-list.ts";
import type { GoneDomain } from "../guest-answers.ts";
import { addDomainArgument, addMachineOption } from "../options.ts";
import { print, printJson } from "../output.ts";
import { StopSignal } from "../signals.ts";

interface SaveOptions {
  machine?: string;
  checkpoint?: true;
  pause?: true;
  json?: true;
}

export function saveCommand(): Command {
  const command = new Command("save").description(
    "write a guest of a running machine to a file, and end it there, as xl save",
  );
  addDomainArgument(command).argument("<FILE>", "where to; what is there is replaced");
  return addMachineOption(command)
    .option("-c, --checkpoint", "the guest runs on")
    .addOption(
      new Option(
        "-p, --pause",
        "the guest stays, suspended; vbdkit resume lets it run on",
      ).conflicts("checkpoint"),
    )
    .option("--json", "print the guest as JSON")
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
Saved are the guest's memory, its nodes, what its disks are, and every request that was in flight. What is on the disks is
not: it stays in their images, which nothing keeps open afterwards. NBD clients of the disks are cut off.

Examples:
  vbdkit save web web.saved
  vbdkit save --checkpoint web web.saved
  vbdkit restore web.saved
`,
    )
    .action(save);
}

async function save(domain: string, file: string, options: SaveOptions): Promise<void> {
  using stop = new StopSignal();
  const server = await findServer(options.machine);
  const { checkpoint, pause } = options;
  const fields = { domain, file: resolve(file), checkpoint, pause };
  const how = { fields, patient: true, signal: stop.signal };
  const guest = await ask<GoneDomain | ListedDomain>(server, "save", how);
  if (options.json) printJson({ ...guest, file: fields.file });
  else print(`${guest.name} (${guest.domid}) is saved in ${file}`);
}
