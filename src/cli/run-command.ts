/** `--run`: a shell command that lives as long as the server, or rather the other way round. */
import { spawn } from "node:child_process";
import { constants } from "node:os";

/** Runs `command` with sh and resolves to its exit code, 128 + N where signal N ended it. When `signal` aborts, the
 * command is asked to end with SIGTERM. */
export function runCommand(
  command: string,
  environment: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const child = spawn("sh", ["-c", command], {
    stdio: "inherit",
    env: { ...process.env, ...environment },
  });
  const stop = () => child.kill("SIGTERM");
  if (signal.aborted) stop();
  signal.addEventListener("abort", stop, { once: true });
  child.once("error", reject).once("exit", (code, name) => {
    signal.removeEventListener("abort", stop);
    resolve(code ?? 128 + (name === null ? 0 : constants.signals[name]));
  });
  return promise;
}
