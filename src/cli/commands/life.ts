/** `vbdkit create`, `suspend`, `resume`, `shutdown` and `destroy`: the life of a running machine's guests, in xl's words. */
import { Command } from "commander";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import type { GoneDomain } from "../guest-answers.ts";
import { addDomainArgument, addMachineOption } from "../options.ts";
import { print, printJson } from "../output.ts";
import { StopSignal } from "../signals.ts";

export function createCommand(): Command {
  const command = new Command("create")
    .description("make one more guest of a running machine")
    .argument("<NAME>", "its name: letters, digits and . _ + -");
  const help = "  vbdkit create web";
  return finish(command, help, ({ name, domid }) => `${name} (${domid}) runs`);
}

export function suspendCommand(): Command {
  const command = addDomainArgument(
    new Command("suspend").description("let a guest stand still as it is, as xl suspend"),
  );
  const help = `
What NBD clients ask of its disks waits until vbdkit resume; vbdkit save and migrate work on it.

Examples:
  vbdkit suspend web`;
  return finish(command, help, ({ name, domid }) => `${name} (${domid}) is suspended`);
}

export function resumeCommand(): Command {
  const command = addDomainArgument(
    new Command("resume").description("let a suspended guest run on, as xl resume"),
  );
  return finish(command, "  vbdkit resume web", ({ name, domid }) => `${name} (${domid}) runs`);
}

export function shutdownCommand(): Command {
  const command = addDomainArgument(
    new Command("shutdown").description("detach a guest's disks and end it, as xl shutdown"),
  );
  const help = `
Its disks go as with vbdkit detach: what was written is on them, and NBD clients are waited for. Whoever stops waiting with
Ctrl-C does not call it off.

Examples:
  vbdkit shutdown web`;
  return finish(command, help, ({ name, domid }) => `${name} (${domid}) is shut down`);
}

export function destroyCommand(): Command {
  const command = addDomainArgument(
    new Command("destroy").description("end a guest at once, as xl destroy"),
  );
  const help = `
As if its power went: what is in flight ends with an error, and NBD clients are cut off. It works on guests that are
suspended or crashed, too.

Examples:
  vbdkit destroy web`;
  return finish(command, help, ({ name, domid }) => `${name} (${domid}) is gone`);
}

/** The command's name is that of its request, and its argument has the request's only field. */
function finish(command: Command, help: string, say: (guest: GoneDomain) => string): Command {
  const request = command.name();
  const field = request === "create" ? "name" : "domain";
  return addMachineOption(command)
    .option("--json", "print the guest as JSON")
    .option("--verbose", "stack traces")
    .addHelpText("after", `\n${help.startsWith("\n") ? help.trim() : `Examples:\n${help}`}\n`)
    .action(async (name: string, options: { machine?: string; json?: true }) => {
      using stop = new StopSignal();
      const server = await findServer(options.machine);
      const how = { fields: { [field]: name }, patient: true, signal: stop.signal };
      const guest = await ask<GoneDomain>(server, request, how);
      if (options.json) printJson(guest);
      else print(say(guest));
    });
}
