/** The program `vbdkit`, as a process. */
import { ExitCode } from "./errors.ts";
import { onClosedPipe, showNotes } from "./output.ts";
import { runProgram } from "./program.ts";

showNotes();
onClosedPipe(() => process.exit(ExitCode.okay));
await runProgram(process.argv.slice(2));
