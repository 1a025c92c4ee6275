/** The program `vbdkit`, as a process. */
import { subscribe } from "node:diagnostics_channel";
import { ExitCode } from "./errors.ts";
import { onClosedPipe } from "./output.ts";
import { runProgram } from "./program.ts";

// What the library does without, and says on this channel, a person should know.
subscribe("vbdkit:note", (note) => {
  process.stderr.write(`vbdkit: note: ${(note as { message: string }).message}\n`);
});
onClosedPipe(() => process.exit(ExitCode.okay));
await runProgram(process.argv.slice(2));
