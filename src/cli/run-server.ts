/** The life of `vbdkit serve`, `vbdkit machine` and `vbdkit connect`, from the first signal that is heard to the last lock
 * released. */
import type { RunOptions } from "./options.ts";
import { onClosedPipe, print, printJson } from "./output.ts";
import { onOrphaned, startedByNpm, startedByOlderNode } from "./parent.ts";
import { Patience } from "./patience.ts";
import { runCommand } from "./run-command.ts";
import { StopSignal } from "./signals.ts";

/** What a command serves over NBD. */
export interface Served extends AsyncDisposable {
  /** Whoever started us opened the socket and knows where it is. */
  readonly activated: boolean;
  /** Resolves when there is nothing more to serve, with the reason. Never, if absent. */
  readonly lost?: Promise<Error>;
  /** What `--run` gives to its command. */
  environment(): Record<string, string>;
  /** What `--json` prints. */
  info(): Promise<unknown>;
  /** What a person is told. */
  banner(): Promise<string>;
  /** Requests that the disks have not answered. */
  inFlight(): Promise<number>;
}

/** Serves what `start` resolves to until somebody asks it to stop, or as long as the command of --run runs. `signal` ends
 * starting. Rejects with what `lost` had to say. */
export async function runServer(
  start: (signal: AbortSignal) => Promise<Served>,
  options: RunOptions,
): Promise<void> {
  // A server goes on when whoever read its greeting has gone.
  onClosedPipe(() => {});
  using stop = new StopSignal();
  using _orphaned =
    options.exitWithParent || startedByNpm() || startedByOlderNode()
      ? onOrphaned(() => stop.stop("the parent ended"))
      : undefined;
  using patience = new Patience(stop.signal);
  await using server = await start(stop.signal);
  patience.server = server;
  if (options.run !== undefined) {
    process.exitCode = await runCommand(options.run, server.environment(), stop.signal);
    return;
  }
  if (options.json) printJson(await server.info());
  // Started by its client, our standard output is that of nbdinfo or nbdcopy.
  else if (!server.activated) print(await server.banner());
  let lost: Error | undefined;
  void server.lost?.then((error) => {
    lost = error;
    stop.stop(error.message);
  });
  await stop.stopped();
  if (lost !== undefined) throw lost;
}
