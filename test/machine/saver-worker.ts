/** A process that works on a disk and saves its guest in the middle of it, to be killed then: IMAGE SAVED SEED. Each line
 * that it prints is a write that was begun ("b BLOCK GENERATION") or answered ("a ..."). */
import { writeSync } from "node:fs";
import { Machine, parseDisk } from "../../src/index.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { BLOCK_BYTES, BLOCKS, contents, fill, WRITERS } from "./verified-load.ts";

const [image, saved, seed] = process.argv.slice(2) as [string, string, string];
const random = new SeededRandom(Number(seed));
// In the folder of whoever kills this process, since it cannot clean up.
const machine = await Machine.start({ directory: `${saved}.machine` });
const guest = await machine.createGuest({ name: "loaded" });
const spec = parseDisk([image, "wdelay=4ms"], ["delay"]);
const disk = await machine.attach(spec, { vdev: "xvda", guest, frontend: { maxQueues: 2 } });

const pages = guest.allocate(200)!;
fill(pages.region.bytes.subarray(pages.start, pages.start + 3 * 4096), 77);
pages.grant(0, 0, true);
pages.grant(1, 0, false);
await guest.domain.store.write(`/local/domain/${guest.domid}/data/app`, `${pages.references[1]}`);

let stopped = false;
async function writer(first: number): Promise<void> {
  for (let generation = 1; !stopped; generation++) {
    const block = first + WRITERS * random.below(BLOCKS / WRITERS);
    writeSync(1, `b ${block} ${generation}\n`);
    await disk.write(block * BLOCK_BYTES, contents(block, generation));
    writeSync(1, `a ${block} ${generation}\n`);
    if (random.next() < 0.05) await disk.flush();
  }
}
const writers = Array.from({ length: WRITERS }, (_, first) => writer(first));
for (const each of writers) each.catch(() => {});
setTimeout(
  () => {
    stopped = true;
    void guest.save(saved).then(() => setInterval(() => {}, 1000));
  },
  100 + random.next() * 300,
);
