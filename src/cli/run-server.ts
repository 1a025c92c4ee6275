/** The life of `vbdkit serve` and `vbdkit machine`, from the first signal that is heard to the last lock released. */
import { banner } from "./banner.ts";
import type { ListenOptions, RunOptions } from "./options.ts";
import { onClosedPipe, print, printJson } from "./output.ts";
import { onOrphaned, startedByNpm, startedByOlderNode } from "./parent.ts";
import { Patience } from "./patience.ts";
import { runCommand } from "./run-command.ts";
import type { ServerContents } from "./server.ts";
import { StopSignal } from "./signals.ts";

/** Serves what `contents` resolves to until somebody asks it to stop, or as long as the command of --run runs. */
export async function runServer(
  contents: () => Promise<ServerContents>,
  options: ListenOptions & RunOptions,
): Promise<void> {
  // A server goes on when whoever read its greeting has gone.
  onClosedPipe(() => {});
  using stop = new StopSignal();
  using _orphaned =
    options.exitWithParent || startedByNpm() || startedByOlderNode()
      ? onOrphaned(() => stop.stop("the parent ended"))
      : undefined;
  using patience = new Patience(stop.signal);
  const { startServer } = await import("./server.ts");
  await using server = await startServer(await contents(), options, stop.signal);
  patience.server = server;
  if (options.run !== undefined) {
    process.exitCode = await runCommand(options.run, server.environment(), stop.signal);
    return;
  }
  const info = await server.info();
  if (options.json) printJson(info);
  // Started by its client, our standard output is that of nbdinfo or nbdcopy.
  else if (!server.activated) print(banner(info));
  await stop.stopped();
}
