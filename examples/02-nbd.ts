/** What comes out of the ring, served over NBD to whatever speaks it: here nbdinfo, if it is installed. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { Machine, NbdServer, parseDisk } from "vbdkit";

await using machine = await Machine.start();
await using disk = await machine.attach(parseDisk(["memory", "64M"]), { vdev: "xvda" });
await using server = new NbdServer([{ name: "", store: disk.store }], { reactor: machine.reactor });
const { uri } = await server.listen({ path: join(machine.directory, "nbd.sock") });
console.log(uri);

const nbdinfo = promisify(execFile)("nbdinfo", ["--size", uri]);
console.log(await nbdinfo.then(({ stdout }) => stdout.trim()).catch((error) => error.message));
