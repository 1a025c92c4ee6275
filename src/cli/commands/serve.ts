/** `vbdkit serve`: disks through a ring, out as NBD. */
import { resolve } from "node:path";
import { Command } from "commander";
import { formatSize, parseSize } from "../../util/size.ts";
import { knobHelp } from "../knobs.ts";
import {
  addListenOptions,
  addOpenOptions,
  addRingOptions,
  addRunOptions,
  collect,
  type ListenOptions,
  type RunOptions,
} from "../options.ts";
import { printNote } from "../output.ts";
import { runServer } from "../run-server.ts";
import type { ServeDiskOptions } from "../serve-disks.ts";

/** What `npm start` serves when nothing is named. */
const DEFAULT_DISK = { path: "disk.img", bytes: parseSize("1G") };

export function serveCommand(): Command {
  const command = new Command("serve")
    .description("put disks through a Xen ring and serve them over NBD")
    .argument("[DISK...]", "[DRIVER] NAME [key=value ...], one or more")
    .usage("[OPTION...] [[DRIVER] NAME [key=value ...]]...");
  addListenOptions(command)
    .option(
      "-e, --export-name <NAME>",
      'NBD export name (default "", or the vdev for several disks)',
    )
    .optionsGroup("The disks:")
    .option("-r, --readonly", "refuse writing")
    .option("--filter <NAME>", "put a filter before the disk; the first is outermost", collect)
    .option("--vdev <NAME>", "virtual device of the first disk: xvda, sda, hda, d0p1 ...", "xvda");
  addOpenOptions(command);
  addRingOptions(command);
  addRunOptions(command).addHelpText("after", () => `\n${knobHelp()}\n${examples}`);
  return command.action((words: string[], options: ServeDiskOptions & ListenOptions & RunOptions) =>
    runServer(async (signal) => {
      const [{ requestsOf }, { startServer }] = await Promise.all([
        import("../serve-disks.ts"),
        import("../server.ts"),
      ]);
      const disks = words.length === 0 ? [await defaultDisk()] : words;
      const contents = { guests: [], disks: await requestsOf(disks, options) };
      return await startServer(contents, options, signal);
    }, options),
  );
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

async function defaultDisk(): Promise<string> {
  const { path, bytes } = DEFAULT_DISK;
  const { makeSparse } = await import("../sparse-file.ts");
  if (await makeSparse(path, bytes)) {
    printNote(`made ${resolve(path)}, ${formatSize(bytes)} of holes`);
  }
  return path;
}
