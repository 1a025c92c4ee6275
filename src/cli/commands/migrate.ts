/** `vbdkit migrate DOMAIN MACHINE`: xl migrate, between two running machines. */
import { Command } from "commander";
import { type ArrivalOptions, arrivalOf, sayArrived } from "../arrival.ts";
import { ask } from "../ask.ts";
import { findMachine, findServer } from "../control.ts";
import { UsageError } from "../errors.ts";
import type { ArrivedDomain, GoneDomain } from "../guest-answers.ts";
import { addArrivalOptions, addDomainArgument, addMachineOption } from "../options.ts";
import { Relay } from "../relay.ts";
import { StopSignal } from "../signals.ts";

interface MigrateOptions extends ArrivalOptions {
  machine?: string;
  json?: true;
}

export function migrateCommand(): Command {
  const command = new Command("migrate").description(
    "move a guest from one running machine to another, as xl migrate",
  );
  addDomainArgument(command).argument(
    "<DESTINATION>",
    "another running machine of yours: its folder, a socket in it, or its URI",
  );
  addMachineOption(command);
  return addArrivalOptions(command)
    .option("--json", "print the guest and its disks, as they are there, as JSON")
    .option("--verbose", "stack traces")
    .addHelpText(
      "after",
      `
The images are open on one side at a time, and requests in flight are carried out there. NBD clients are cut off here once
the guest runs there. Where it cannot run there, it runs on here.

Examples:
  vbdkit migrate --machine lab web /tmp/vbdkit-x1y2z3
  vbdkit migrate web ../other-lab --name web2
`,
    )
    .action(migrate);
}

async function migrate(
  domain: string,
  destination: string,
  options: MigrateOptions,
): Promise<void> {
  using stop = new StopSignal();
  const arrival = await arrivalOf(options);
  const source = await findServer(options.machine);
  const target = findMachine(destination);
  if (target === undefined) throw new UsageError(`${destination}: no machine runs there`);
  await using relay = await Relay.open();
  const how = (fields: object) => ({ fields, patient: true, signal: stop.signal });
  const receive = how({ ...arrival, socket: relay.receiver });
  const [sent, received] = await Promise.allSettled([
    ask<GoneDomain>(source, "migrate", how({ domain, socket: relay.sender })).catch(refused),
    ask<ArrivedDomain>(target, "receive", receive).catch(refused),
  ]);
  // The sender tells what the receiver said, and whether the guest is still there.
  if (sent.status === "rejected") throw sent.reason;
  if (received.status === "rejected") throw received.reason;
  sayArrived(received.value, options.json === true);

  /** Whoever is never called at would be waited for. */
  function refused(error: unknown): never {
    relay.end();
    throw error;
  }
}
