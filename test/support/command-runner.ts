/** Runs commands of the program as `vbdkit()` of vbdkit.ts does, but in one process after the other: what they print, their
 * exit code, their folder and machine are the same, and Node is started once. Not for commands that wait or stay. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { Turns } from "../../src/util/turns.ts";
import type { CommandMessage } from "./command-child.ts";
import { cleanEnvironment, type Outcome } from "./vbdkit.ts";

export class CommandRunner implements AsyncDisposable {
  readonly #turns = new Turns();
  readonly #child = fork(new URL("command-child.ts", import.meta.url), {
    env: cleanEnvironment(),
    stdio: ["ignore", "ignore", "inherit", "ipc"],
    execArgv: process.execArgv.filter((each) => each.startsWith("--conditions")),
  });
  readonly #ended = once(this.#child, "close");

  run(words: readonly string[], cwd: string, machine?: string): Promise<Outcome> {
    return this.#turns.run(async () => {
      const message: CommandMessage = { words, cwd, machine };
      this.#child.send(message);
      const [outcome] = await Promise.race([
        once(this.#child, "message"),
        this.#ended.then(() => Promise.reject(new Error("the commands' process has ended"))),
      ]);
      return outcome as Outcome;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }
}
