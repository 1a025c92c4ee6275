/** A process that receives a guest from the socket that it is told, looks at what the guest had written (page i of its disk
 * is full of i + 1, for 100 pages), says so, and ends. */
import { connect } from "node:net";
import { Machine } from "../../src/index.ts";

await using machine = await Machine.start();
const stream = connect(process.argv[2]!);
const guest = await machine.receive(stream);
stream.destroy();
const [disk] = guest.disks;
await Promise.all(disk!.inherited.map(({ outcome }) => outcome));
let good = 0;
for (let i = 0; i < 100; i++) {
  const bytes = await disk!.read(i * 4096, 4096);
  if (bytes.every((byte) => byte === i + 1)) good++;
}
process.stdout.write(`${guest.name}: ${good} pages`);
