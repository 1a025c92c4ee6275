/** `vbdkit daemon`: serves the vbds of a Xen host's guests, or of a driver domain, as xl devd and tapback do theirs. */
import { Command, InvalidArgumentError } from "commander";
import type { EngineChoice } from "../../store/block-store.ts";
import { type DaemonSettings, RUN_FOLDER } from "../daemon-settings.ts";
import { backendKnobs, knobHelp } from "../knobs.ts";
import { addEngineOption, collect } from "../options.ts";
import { printNote } from "../output.ts";

interface DaemonOptions {
  kind?: string[];
  shared?: true;
  runDir: string;
  user?: string;
  engine: EngineChoice;
  backend?: string[];
  pidfile?: string;
  verbose?: true;
}

const KINDS = ["vbd3", "vbd"];

export function daemonCommand(): Command {
  const command = new Command("daemon")
    .description("serve disks to the guests of this Xen host, or of this driver domain")
    .option(
      "--kind <KIND>",
      "serve backend/KIND: vbd3 (default), vbd where no kernel driver does; may be given twice",
      kind,
    )
    .option("--shared", "one process for all guests (default: one for each)")
    .option("--run-dir <DIR>", "folder of the control socket and the journals", RUN_FOLDER)
    .option("--user <NAME>", "who serves, once the devices are open (default: who starts it)");
  addEngineOption(command);
  return command
    .option("--backend <NAME=VALUE>", "a parameter of every backend, listed below", collect)
    .option("-P, --pidfile <FILE>", "write the process id there just before it serves")
    .option("--verbose", "what the backends do, and stack traces")
    .addHelpText("after", () => `\n${knobHelp()}\n${examples}`)
    .action(async (options: DaemonOptions) => {
      const { runDaemon } = await import("../daemon-process.ts");
      const settings: DaemonSettings = {
        kinds: options.kind ?? ["vbd3"],
        shared: options.shared === true,
        folder: options.runDir,
        user: options.user,
        engine: options.engine,
        limits: backendKnobs(options.backend ?? [], printNote),
        pidfile: options.pidfile,
        verbose: options.verbose === true,
      };
      await runDaemon(settings);
    });
}

function kind(value: string, previous: readonly string[] = []): string[] {
  if (KINDS.includes(value)) return [...new Set([...previous, value])];
  throw new InvalidArgumentError(`Write ${KINDS.join(" or ")}.`);
}

const examples = `
It serves the disks that vbdkit attach makes, and those whose toolstack names the script block-vbdkit (or, from Xen 4.19
on, backendtype=tap). SIGTERM finishes what was taken and leaves every disk connected: a daemon that is started after it
serves the same guests, who notice nothing. So it is after SIGKILL.

Examples:
  vbdkit daemon
  vbdkit attach web 'vdev=xvdb,target=/srv/web.img'
  vbdkit daemon --kind vbd                  in a driver domain: disks with backend=NAME,script=block-vbdkit
`;
