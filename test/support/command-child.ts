/** Child process of command-runner.ts: runs commands of the program one after the other, without a start of Node for each.
 * What main.ts is to a shell, this is to a test. */
import { runProgram } from "../../src/cli/program.ts";
import type { Outcome } from "./vbdkit.ts";

export interface CommandMessage {
  readonly words: readonly string[];
  readonly cwd: string;
  readonly machine: string | undefined;
}

const texts = { stdout: "", stderr: "" };
for (const name of ["stdout", "stderr"] as const) {
  process[name].write = (chunk: string | Uint8Array): boolean => {
    texts[name] += String(chunk);
    return true;
  };
}

async function run({ words, cwd, machine }: CommandMessage): Promise<Outcome> {
  process.chdir(cwd);
  if (machine === undefined) delete process.env.VBDKIT_MACHINE;
  else process.env.VBDKIT_MACHINE = machine;
  process.exitCode = 0;
  texts.stdout = "";
  texts.stderr = "";
  await runProgram(words);
  return { code: Number(process.exitCode), ...texts };
}

process.on("message", (message: CommandMessage) => {
  void run(message).then((outcome) => process.send?.(outcome));
});
