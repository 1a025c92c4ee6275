/** A machine that runs beside tests, and commands that are asked of it, as a person at two terminals has them. */
import { once } from "node:events";
import type { ListedDomain } from "../../src/cli/disk-list.ts";
import { CommandRunner } from "./command-runner.ts";
import {
  cleanEnvironment,
  type Outcome,
  type Served,
  serve,
  type TemporaryFolder,
  temporaryFolder,
} from "./vbdkit.ts";

export interface TestMachine extends AsyncDisposable {
  readonly served: Served;
  readonly folder: TemporaryFolder;
  readonly env: NodeJS.ProcessEnv;
  /** Runs `vbdkit WORDS` in the folder, with VBDKIT_MACHINE. */
  run(...words: string[]): Promise<Outcome>;
  /** The same, to a good end; what it printed. */
  okay(...words: string[]): Promise<string>;
  list(): Promise<ListedDomain[]>;
}

export async function startMachine(...guests: string[]): Promise<TestMachine> {
  const folder = await temporaryFolder();
  const served = await serve(guests, {}, "machine");
  const { directory } = served.info;
  const env = cleanEnvironment({ VBDKIT_MACHINE: directory });
  const runner = new CommandRunner();
  const run = (...words: string[]) => runner.run(words, folder.path, directory);
  const okay = async (...words: string[]) => {
    const { code, stdout, stderr } = await run(...words);
    if (code !== 0) throw new Error(`vbdkit ${words.join(" ")}: ${code} ${stderr}`);
    return stdout;
  };
  return {
    ...{ served, folder, env, run, okay },
    list: async () => JSON.parse(await okay("list", "--json")),
    async [Symbol.asyncDispose]() {
      await runner[Symbol.asyncDispose]();
      await served[Symbol.asyncDispose]();
      await folder[Symbol.asyncDispose]();
    },
  };
}

/** What a child has said on standard error once it has said something. */
export async function firstWords(child: { stderr: NodeJS.ReadableStream | null }): Promise<string> {
  const [text] = await once(child.stderr!, "data");
  return String(text);
}
