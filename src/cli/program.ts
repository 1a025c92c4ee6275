/** The commands and how they look: one place for help, styles, versions and what commander says of mistakes. */
import { Command, CommanderError } from "commander";
import { didYouMean } from "../util/nearest.ts";
import { attachCommand } from "./commands/attach.ts";
import { benchCommand } from "./commands/bench.ts";
import { completionCommand } from "./commands/completion.ts";
import { connectCommand } from "./commands/connect.ts";
import { copyCommand } from "./commands/copy.ts";
import { daemonCommand } from "./commands/daemon.ts";
import { detachCommand } from "./commands/detach.ts";
import { driversCommand, filtersCommand } from "./commands/drivers.ts";
import { helpCommand } from "./commands/help.ts";
import { infoCommand } from "./commands/info.ts";
import {
  createCommand,
  destroyCommand,
  resumeCommand,
  shutdownCommand,
  suspendCommand,
} from "./commands/life.ts";
import { listCommand } from "./commands/list.ts";
import { machineCommand } from "./commands/machine.ts";
import { migrateCommand } from "./commands/migrate.ts";
import { resizeCommand } from "./commands/resize.ts";
import { restoreCommand } from "./commands/restore.ts";
import { saveCommand } from "./commands/save.ts";
import { serveCommand } from "./commands/serve.ts";
import { statsCommand } from "./commands/stats.ts";
import { testCommand } from "./commands/test.ts";
import { topCommand } from "./commands/top.ts";
import { xenstoreCommand } from "./commands/xenstore.ts";
import { ExitCode, report } from "./errors.ts";
import { paint } from "./output.ts";
import { packageVersion } from "./version.ts";

export function createProgram(): Command {
  const program = new Command("vbdkit")
    .description("Xen virtual block devices in TypeScript: serve a disk, look at it, copy it.")
    .version(packageVersion(), "-V, --version", "print the version")
    .usage("COMMAND [OPTION...]")
    .helpCommand(false)
    .addHelpText(
      "after",
      `
Try:
  vbdkit serve disk.img                     a disk through a Xen ring, out as NBD
  vbdkit serve memory 1G --run 'nbdinfo "$uri"'
  vbdkit machine guest1                     a machine; then vbdkit attach, list, resize, detach
  vbdkit info disk.img                      what is in it
  vbdkit help file                          a driver, a filter or a command
`,
    );
  program.addCommand(serveCommand());
  program.addCommand(machineCommand());
  program.addCommand(daemonCommand());
  program.addCommand(connectCommand());
  program.addCommand(attachCommand());
  program.addCommand(detachCommand());
  program.addCommand(listCommand());
  program.addCommand(resizeCommand());
  for (const command of [
    createCommand(),
    suspendCommand(),
    resumeCommand(),
    saveCommand(),
    restoreCommand(),
    migrateCommand(),
    shutdownCommand(),
    destroyCommand(),
  ]) {
    program.addCommand(command);
  }
  program.addCommand(infoCommand());
  program.addCommand(statsCommand());
  program.addCommand(topCommand());
  program.addCommand(copyCommand());
  program.addCommand(benchCommand());
  program.addCommand(xenstoreCommand());
  program.addCommand(testCommand());
  program.addCommand(driversCommand());
  program.addCommand(filtersCommand());
  program.addCommand(completionCommand(program));
  program.addCommand(helpCommand(program));
  program.action(() => {
    const [word] = program.args;
    if (word === undefined) program.help();
    const names = program.commands.map((command) => command.name());
    program.error(`error: there is no command "${word}"${didYouMean(word!, names)}`);
  });
  program.allowExcessArguments();
  prepare(program);
  return program;
}

/** Parses what was typed, runs the command, turns an error into one line and an exit code. */
export async function runProgram(words: readonly string[]): Promise<void> {
  try {
    await createProgram().parseAsync(words, { from: "user" });
  } catch (error) {
    // Commander has printed the help or the one line already.
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? ExitCode.okay : ExitCode.usage;
    } else {
      report(error, words.includes("--verbose"));
    }
  }
}

/** One style and one way of failing for a command and those below it. */
function prepare(command: Command): void {
  command
    .exitOverride()
    .showSuggestionAfterError()
    .configureHelp({
      styleTitle: (title) => paint("bold", title),
      optionTerm: (option) => option.flags.replaceAll(/[<>]/g, ""),
      argumentTerm: (argument) => argument.name(),
    })
    .configureOutput({ outputError: (text, write) => write(`${oneLine(text, command)}\n`) });
  for (const child of command.commands) prepare(child);
}

/** `error: unknown option '--x'\n(Did you mean --y?)` of commander, as every other message of ours. */
function oneLine(text: string, command: Command): string {
  const message = text
    .replace(/^error: /, "")
    .trim()
    // Somebody's number; all of ours begin at 0.
    .replace(/^unknown option '(-\d.*)'$/, "$1 is below 0; write the number that it is to be")
    .replace(/\n\(Did you mean (.*)\?\)$/, "; did you mean $1?")
    .replace(/\n\(Did you mean one of (.*)\?\)$/, "; did you mean one of $1?")
    .replaceAll("\n", " ");
  const names: string[] = [];
  for (let at: Command | null = command; at !== null; at = at.parent) names.unshift(at.name());
  return `vbdkit: ${message} (see ${names.join(" ")} --help)`;
}
