/** `vbdkit detach DOMAIN VDEV`: xl block-detach, on a running machine. */
import { Command } from "commander";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import { addDomainArgument, addMachineOption } from "../options.ts";
import { StopSignal } from "../signals.ts";

export function detachCommand(): Command {
  const command = addDomainArgument(
    new Command("detach").description(
      "detach a disk from a guest of a running machine, as xl block-detach",
    ),
  ).argument("<VDEV>", "the disk: xvda, or its number");
  return addMachineOption(command)
    .option("-f, --force", "now, whoever uses it")
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
A disk that NBD clients use takes no new ones, and goes when the last has left: that is waited for. Whoever stops waiting
with Ctrl-C does not call it off.

Examples:
  vbdkit detach web xvda
  vbdkit detach --force 1 51712
`,
    )
    .action(async (domain: string, vdev: string, options: { machine?: string; force?: true }) => {
      using stop = new StopSignal();
      const server = await findServer(options.machine);
      const fields = { domain, vdev, force: options.force === true };
      await ask<true>(server, "detach", { fields, patient: true, signal: stop.signal });
    });
}
