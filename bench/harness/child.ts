/**
 * A contender of ours in a process of its own, which lives as long as the row: nothing that another row left in the heap,
 * or in the compiler's memory of types, is measured.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import type { Contender } from "./group.ts";

type Answer = { readonly figure: number } | { readonly error: string };

export class ChildContender implements Contender, AsyncDisposable {
  readonly name: string;
  readonly #child: ChildProcess;

  /** Runs a module that calls `serveMeasurements` with what is given here; `words` are more options of Node's. */
  static async start(
    name: string,
    module: string,
    given: unknown,
    words: readonly string[] = [],
  ): Promise<ChildContender> {
    const child = fork(module, [JSON.stringify(given)], {
      execArgv: [...process.execArgv, ...profiling(), ...words],
      serialization: "json",
    });
    const contender = new ChildContender(name, child);
    await contender.#answer();
    return contender;
  }

  private constructor(name: string, child: ChildProcess) {
    this.name = name;
    this.#child = child;
  }

  async measure(seconds: number): Promise<number> {
    this.#child.send({ seconds });
    return await this.#answer();
  }

  async #answer(): Promise<number> {
    const ended = new AbortController();
    const { signal } = ended;
    try {
      const [answer] = (await Promise.race([
        once(this.#child, "message", { signal }),
        once(this.#child, "exit", { signal }).then(([code]) => [
          { error: `${this.name} ended with ${code}` },
        ]),
      ])) as [Answer];
      if ("error" in answer) throw new Error(answer.error);
      return answer.figure;
    } finally {
      ended.abort();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exit = once(this.#child, "exit");
    this.#child.disconnect();
    const [code] = await exit;
    if (code !== 0) throw new Error(`${this.name} ended with ${code}`);
  }
}

/** Seconds in which a new process compiles. */
const WARM_UP_SECONDS = 0.5;

/** A contender that is a new process for each measurement, for rows whose two differ by little: how V8 has happened to
 * compile, and where things lie in memory, favours a process by several percent for as long as it lives. */
export function freshChild(
  name: string,
  module: string,
  given: unknown,
  words: readonly string[],
): Contender {
  return {
    name,
    async measure(seconds) {
      await using child = await ChildContender.start(name, module, given, words);
      await child.measure(WARM_UP_SECONDS);
      return await child.measure(seconds);
    },
  };
}

/** Kills a child that has not ended, and waits for its end. */
export async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, "exit");
  child.kill();
  await exit;
}

/** `--profile FOLDER` of the command. */
export function profiling(): string[] {
  const folder = process.env.VBDKIT_BENCH_PROFILE;
  return folder === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${folder}`];
}

/** The child's side: opens what is measured, answers until the parent is gone, and closes it. */
export async function serveMeasurements<T>(
  open: (given: T) => Promise<AsyncDisposable & { measure(seconds: number): Promise<number> }>,
): Promise<void> {
  // Without a parent there is nobody to tell.
  const answer = (message: Answer) => void process.send?.(message);
  const fail = (error: unknown) =>
    answer({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  try {
    const given = JSON.parse(process.argv[2]!) as T;
    await using measured = await open(given);
    process.on("message", ({ seconds }: { seconds: number }) => {
      measured.measure(seconds).then((figure) => answer({ figure }), fail);
    });
    const gone = once(process, "disconnect");
    answer({ figure: 0 });
    await gone;
  } catch (error) {
    fail(error);
    process.exitCode = 1;
    process.disconnect?.();
  }
}
