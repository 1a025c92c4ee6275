/** The program `vbdkit`: parses what was typed, runs the command, turns an error into one line and an exit code. */
import { subscribe } from "node:diagnostics_channel";
import { CommanderError } from "commander";
import { ExitCode, report } from "./errors.ts";
import { onClosedPipe } from "./output.ts";
import { createProgram } from "./program.ts";

// What the library does without, and says on this channel, a person should know.
subscribe("vbdkit:note", (note) => {
  process.stderr.write(`vbdkit: note: ${(note as { message: string }).message}\n`);
});
onClosedPipe(() => process.exit(ExitCode.okay));
try {
  await createProgram().parseAsync();
} catch (error) {
  // Commander has printed the help or the one line already.
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? ExitCode.okay : ExitCode.usage;
  } else {
    report(error, process.argv.includes("--verbose"));
  }
}
