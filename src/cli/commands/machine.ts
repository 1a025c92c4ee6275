/** `vbdkit machine`: a machine without Xen that keeps running, for attach, detach, list and resize in other terminals. */
import { Command } from "commander";
import { UsageError } from "../errors.ts";
import { checkGuestName } from "../guest-name.ts";
import {
  addListenOptions,
  addRunOptions,
  type ListenOptions,
  type RunOptions,
} from "../options.ts";
import { runServer } from "../run-server.ts";

const DEFAULT_GUESTS = ["guest1"];
/** Each has 64 MiB of address space and a few descriptors. */
const MAX_GUESTS = 256;

export function machineCommand(): Command {
  const command = new Command("machine")
    .description("run a machine with guests, to which other commands attach disks")
    .argument("[DOMAIN...]", "names of its guests (default: guest1)");
  addListenOptions(command).option(
    "--state <FILE>",
    "the xenstore outlives the machine in this file",
  );
  return addRunOptions(command)
    .addHelpText(
      "after",
      `
Domain-0 is always there: it has the backends and the xenstore. An attached disk is an NBD export, DOMAIN/VDEV.
Ctrl-C detaches the disks and removes the sockets; once more, a second later, ends at once.

With --state, what people and programs wrote into the xenstore is there again next time, also after a crash; what is
about the domains of the machine before (/local/domain, /libxl, /vm) is not.

Examples:
  vbdkit machine
  vbdkit machine --machine lab web database
  vbdkit machine web --run 'vbdkit attach web "vdev=xvda,target=memory 1G" && vbdkit list'
`,
    )
    .action((names: string[], options: ListenOptions & RunOptions) =>
      runServer(async (signal) => {
        const contents = { guests: guestNames(names), disks: [] };
        const { startServer } = await import("../server.ts");
        return await startServer(contents, options, signal);
      }, options),
    );
}

function guestNames(names: readonly string[]): readonly string[] {
  for (const [index, name] of names.entries()) {
    checkGuestName(name);
    if (names.indexOf(name) !== index) throw new UsageError(`there are two domains "${name}"`);
  }
  if (names.length > MAX_GUESTS) throw new UsageError(`more than ${MAX_GUESTS} guests`);
  return names.length === 0 ? DEFAULT_GUESTS : names;
}
