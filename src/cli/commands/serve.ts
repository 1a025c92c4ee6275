/** `vbdkit serve`: the options, and the order of things from start to the last lock released. */
import { resolve } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { formatSize, parseSize } from "../../util/size.ts";
import { banner } from "../banner.ts";
import { knobHelp } from "../knobs.ts";
import { onClosedPipe, print, printJson } from "../output.ts";
import { onOrphaned, startedByNpm, startedByOlderNode } from "../parent.ts";
import { Patience } from "../patience.ts";
import { runCommand } from "../run-command.ts";
import type { ServeOptions } from "../server.ts";
import { StopSignal } from "../signals.ts";

/** What `npm start` serves when nothing is named. */
const DEFAULT_DISK = { path: "disk.img", bytes: parseSize("1G") };

export function serveCommand(): Command {
  const command = new Command("serve")
    .description("put disks through a Xen ring and serve them over NBD")
    .argument("[DISK...]", "[DRIVER] NAME [key=value ...], one or more")
    .usage("[OPTION...] [[DRIVER] NAME [key=value ...]]...")
    .optionsGroup("Where it listens:")
    .option(
      "-U, --unix <SOCKET>",
      "NBD on this Unix socket; - is one in a private folder (default)",
    )
    .addOption(
      new Option("-p, --port <PORT>", "NBD on this TCP port; 0 takes a free one")
        .argParser(integer(0, 65535))
        .conflicts("unix"),
    )
    .option("-i, --ip <ADDRESS>", "the address for --port (default: 127.0.0.1)")
    .option(
      "-e, --export-name <NAME>",
      'NBD export name (default "", or the vdev for several disks)',
    )
    .option("--xenstore <SOCKET>", "the xenstore listens on this socket")
    .option("--machine <DIR>", "folder for the sockets, made 0700 (default: a fresh one)")
    .optionsGroup("The disks:")
    .option("-r, --readonly", "refuse writing")
    .option("--filter <NAME>", "put a filter before the disk; the first is outermost", collect)
    .option("--shared", "do not lock the image; you keep its writers apart")
    .option("--vdev <NAME>", "virtual device of the first disk: xvda, sda, hda, d0p1 ...", "xvda")
    .addOption(
      new Option("--engine <ENGINE>", "how files are read and written")
        .choices(["auto", "io_uring", "pread", "libuv"])
        .default("auto"),
    )
    .optionsGroup("The ring between frontend and backend:")
    .addOption(
      new Option("--link <LINK>", "where the backend runs")
        .choices(["thread", "worker", "process"])
        .default("thread"),
    )
    .option("--backend <NAME=VALUE>", "a parameter of the backend, listed below", collect)
    .option("--frontend <NAME=VALUE>", "a parameter of the frontend, listed below", collect)
    .option("--max-ring-page-order <N>", "the ring has at most 2^N pages", integer(0, 4))
    .option(
      "--max-indirect-segments <N>",
      "4 KiB segments in one request; 0 for none",
      integer(0, 256),
    )
    .option("--max-persistent-grants <N>", "grants the backend keeps mapped", integer(0, 65536))
    .option("--no-persistent", "map and unmap grants for every request")
    .option("--no-discard", "do not offer discard")
    .addOption(
      new Option("--protocol <ABI>", "the layout the frontend speaks").choices([
        "x86_64-abi",
        "x86_32-abi",
        "native",
      ]),
    )
    .optionsGroup("How it runs:")
    .option("--run <COMMAND>", "run a shell command, end with it and with its exit code")
    .option("-P, --pidfile <FILE>", "write the process id there once it serves")
    .option("--exit-with-parent", "end when the parent ends (always so under npm and npx)")
    .addOption(new Option("--json", "print what is served as JSON").conflicts("run"))
    .option("--verbose", "what the backends do, and stack traces")
    .addHelpText("after", () => `\n${knobHelp()}\n${examples}`);
  return command.action((words: string[], options: ServeOptions) => serve(words, options));
}

const examples = `
Without a DISK it serves disk.img of this folder, made sparse (1 GiB) if it is not there.
--run has $uri, $unixsocket, $nbd, $port, $XENSTORED_PATH and $VBDKIT_MACHINE.
Ctrl-C ends requests in flight, flushes, detaches and removes the sockets; once more, a second later, ends at once.

Examples:
  vbdkit serve disk.img
  vbdkit serve memory 1G --run 'nbdcopy "$uri" copy.img'
  vbdkit serve --filter delay disk.img rdelay=10ms
  vbdkit serve -p 10809 -r file golden.img
  vbdkit serve a.img b.img --link worker
  vbdkit serve disk.img --max-ring-page-order 0 --no-persistent
  vbdkit serve disk.img --frontend max_queues=4 --backend log_stats=1
  nbdinfo [ vbdkit serve disk.img ]
`;

async function serve(words: string[], options: ServeOptions): Promise<void> {
  // A server goes on when whoever read its greeting has gone.
  onClosedPipe(() => {});
  using stop = new StopSignal();
  using _orphaned =
    options.exitWithParent || startedByNpm() || startedByOlderNode()
      ? onOrphaned(() => stop.stop("the parent ended"))
      : undefined;
  if (words.length === 0) {
    const { makeSparse } = await import("../sparse-file.ts");
    if (await makeSparse(DEFAULT_DISK.path, DEFAULT_DISK.bytes)) {
      const size = formatSize(DEFAULT_DISK.bytes);
      process.stderr.write(`vbdkit: note: made ${resolve(DEFAULT_DISK.path)}, ${size} of holes\n`);
    }
  }
  const disks = words.length === 0 ? [DEFAULT_DISK.path] : words;
  using patience = new Patience(stop.signal);
  const { startServer } = await import("../server.ts");
  await using server = await startServer(disks, options, stop.signal);
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

function collect(value: string, previous: readonly string[] = []): string[] {
  return [...previous, value];
}

function integer(minimum: number, maximum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= minimum && value <= maximum) return value;
    throw new InvalidArgumentError(`Write a number from ${minimum} to ${maximum}.`);
  };
}
