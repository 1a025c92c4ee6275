/** `vbdkit connect`: a disk of a real Xen's backend, out as NBD. */
import { Command } from "commander";
import type { ConnectOptions } from "../connected-server.ts";
import { frontendKnobHelp } from "../knobs.ts";
import { addFrontendOptions, addNbdOptions, addRunOptions } from "../options.ts";
import { runServer } from "../run-server.ts";

export function connectCommand(): Command {
  const command = new Command("connect")
    .description("serve a disk of a Xen backend over NBD, in a guest or in domain 0")
    .argument("<DEVICE>", "a vdev of this domain, its directory, or DISKSPEC for a new one")
    .argument("[DISKSPEC...]", "further words of a DISKSPEC")
    .usage("[OPTION...] VDEV|PATH|DISKSPEC...");
  addNbdOptions(command).option("-e, --export-name <NAME>", 'NBD export name (default "")');
  command
    .optionsGroup("The device:")
    .option("-r, --readonly", "refuse writing")
    .option("--force", "take it over from a driver that was killed");
  addFrontendOptions(command);
  return addRunOptions(command)
    .addHelpText("after", () => `\n${frontendKnobHelp()}\n${examples}`)
    .action((first: string, rest: string[], options: ConnectOptions) =>
      runServer(async (signal) => {
        const { connectTarget } = await import("../connect-target.ts");
        const target = connectTarget([first, ...rest]);
        const { startConnected } = await import("../connected-server.ts");
        return await startConnected(target, options, signal);
      }, options),
    );
}

const examples = `
VDEV or PATH is a device that the toolstack made for this domain and no driver took: device/vbd/51728. DISKSPEC, as of xl
block-attach, makes one in domain 0, and removes it in the end: a block device is served by Linux's blkback, a file by
QEMU; backendtype=tap is for vbdkit daemon, backend=DOMAIN for a driver domain.
--run has $uri, $unixsocket, $nbd and $port. Ctrl-C ends requests in flight, flushes and closes the device.

Examples:
  vbdkit connect xvdb
  vbdkit connect vdev=xvdb,target=/dev/vg/data --run 'nbdcopy "$uri" data.img'
  vbdkit connect -p 10809 -r vdev=xvdb,format=qcow2,target=/srv/old.qcow2
  vbdkit connect vdev=xvdb,backend=storage,target=/dev/vg/data
`;
