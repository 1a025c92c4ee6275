/** Runs the program as a person does: `bin/vbdkit.js`, its exit code, what it printed; and a temporary folder. */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServerInfo } from "../../src/cli/server-info.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

type VbdkitOptions = Pick<SpawnOptions, "cwd" | "env">;

/** The environment of a person at a shell: without what npm and the test runner put there, nor the mark of a machine
 * that runs tests, which makes Node see no colours in any terminal. */
export function cleanEnvironment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) =>
      !/^(CI$|npm_|NODE_TEST|NODE_OPTIONS|XENSTORED_|VBDKIT_|FORCE_COLOR|NO_COLOR)/.test(name),
  );
  return { ...Object.fromEntries(kept), ...more };
}

export function start(words: readonly string[], options: VbdkitOptions = {}): ChildProcess {
  return spawn(process.execPath, [program, ...words], {
    cwd: options.cwd,
    env: options.env ?? cleanEnvironment(),
    stdio: ["ignore", "pipe", "pipe"],
  });
}

/** Runs to the end. */
export async function vbdkit(
  words: readonly string[],
  options: VbdkitOptions = {},
): Promise<Outcome> {
  return await finished(start(words, options));
}

/** What a child printed, once it has ended. */
export async function finished(child: ChildProcess): Promise<Outcome> {
  let stdout = "";
  let stderr = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject).once("close", resolve);
  });
  return { code, stdout, stderr };
}

/** A server that serves; disposal stops it with SIGTERM and waits for its end. */
export interface Served extends AsyncDisposable {
  /** What `--json` printed. */
  readonly info: ServerInfo;
  readonly child: ChildProcess;
  /** Resolves when the server has ended. */
  readonly outcome: Promise<Outcome>;
}

/** Starts `vbdkit serve --json WORDS`, or `vbdkit machine`, and waits until it serves. */
export async function serve(
  words: readonly string[],
  options: VbdkitOptions = {},
  command: "serve" | "machine" = "serve",
): Promise<Served> {
  const child = start([command, "--json", ...words], options);
  const outcome = finished(child);
  let text = "";
  const info = await new Promise<ServerInfo>((resolve, reject) => {
    child.stdout?.on("data", (chunk: string) => {
      text += chunk;
      if (text.endsWith("\n}\n")) resolve(JSON.parse(text));
    });
    outcome.then(({ code, stderr }) => reject(new Error(`vbdkit ended with ${code}: ${stderr}`)));
  });
  return {
    info,
    child,
    outcome,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await outcome;
    },
  };
}

export interface TemporaryFolder extends AsyncDisposable {
  readonly path: string;
  /** A name in it. */
  file(name: string): string;
}

export async function temporaryFolder(): Promise<TemporaryFolder> {
  const path = await mkdtemp(join(tmpdir(), "vbdkit-test-"));
  return {
    path,
    file: (name) => join(path, name),
    async [Symbol.asyncDispose]() {
      await rm(path, { recursive: true, force: true });
    },
  };
}
