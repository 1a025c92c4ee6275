/** `vbdkit restore FILE`: xl restore, on a running machine. */
import { resolve } from "node:path";
import { Command } from "commander";
import { type ArrivalOptions, arrivalOf, sayArrived } from "../arrival.ts";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import type { ArrivedDomain } from "../guest-answers.ts";
import { addArrivalOptions, addMachineOption } from "../options.ts";
import { StopSignal } from "../signals.ts";

export function restoreCommand(): Command {
  const command = new Command("restore")
    .description("make a guest of a file that vbdkit save wrote, as xl restore")
    .argument("<FILE>", "what vbdkit save wrote, here or elsewhere");
  addMachineOption(command);
  return addArrivalOptions(command)
    .option("--json", "print the guest and its disks as JSON")
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
Requests that were in flight are carried out once more, before the disks take others. The file stays. One from elsewhere
can name any image as a disk: --disk says which it is instead, in xl's syntax.

Examples:
  vbdkit restore web.saved
  vbdkit restore web.saved --name web2 --disk copy.img,raw,xvda
`,
    )
    .action(async (file: string, options: ArrivalOptions & { machine?: string; json?: true }) => {
      using stop = new StopSignal();
      const fields = { ...(await arrivalOf(options)), file: resolve(file) };
      const server = await findServer(options.machine);
      const how = { fields, patient: true, signal: stop.signal };
      sayArrived(await ask<ArrivedDomain>(server, "restore", how), options.json === true);
    });
}
