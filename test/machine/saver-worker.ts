/** A process that works on a disk and saves its guest in the middle of it, to be killed then: IMAGE SAVED SEED. The seed
 * also chooses the links, rings and features. It prints what verified-load.ts reads, and "s" when it begins to save. */
import { writeSync } from "node:fs";
import { Machine, parseDisk } from "../../src/index.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { BLOCK_BYTES, BLOCKS_PER_WRITER, contents, fill, WRITERS } from "./verified-load.ts";

const [image, saved, seed] = process.argv.slice(2) as [string, string, string];
const random = new SeededRandom(Number(seed));
const oneOf = <T>(...choices: readonly T[]): T => choices[random.below(choices.length)]!;
const link = oneOf("thread", "thread", "worker", "process");
// In the folder of whoever kills this process, since it cannot clean up.
const machine = await Machine.start({ directory: `${saved}.machine` });
const guest = await machine.createGuest({
  name: "loaded",
  shared: link === "process",
  portCount: 100,
  ...oneOf({}, { xenstore: "ring" } as const),
});
const disk = await machine.attach(
  parseDisk([image, `wdelay=${oneOf(1, 4, 15)}ms`, "rdelay=1ms"], ["delay"]),
  {
    vdev: "xvda",
    guest,
    link,
    frontend: {
      maxQueues: oneOf(1, 2, 4),
      maxRingPageOrder: oneOf(0, 2, 4),
      maxIndirectSegments: oneOf(0, 32, 256),
      maxPoolPages: oneOf(256, 1024),
      persistent: oneOf(true, false),
    },
    backend: { sectorSize: oneOf(512, 4096), persistent: oneOf(true, false) },
  },
);

const pages = guest.allocate(200)!;
fill(pages.region.bytes.subarray(pages.start, pages.start + 3 * 4096), 77);
pages.grant(0, 0, true);
pages.grant(1, 0, false);
await guest.domain.store.write(`/local/domain/${guest.domid}/data/app`, `${pages.references[1]}`);

/** Writes blocks side by side, in one request or in several, and looks at what was written before. */
async function writer(mine: number): Promise<void> {
  const written = new Map<number, number>();
  for (let generation = 1; ; generation++) {
    const count = 1 + random.below(4);
    const first = mine * BLOCKS_PER_WRITER + random.below(BLOCKS_PER_WRITER - count + 1);
    const blocks = Array.from({ length: count }, (_, i) => first + i);
    for (const block of blocks) writeSync(1, `b ${block} ${generation}\n`);
    const data = blocks.map((block) => contents(block, generation));
    if (random.next() < 0.3) await disk.write(first * BLOCK_BYTES, Buffer.concat(data));
    else await Promise.all(data.map((each, i) => disk.write(blocks[i]! * BLOCK_BYTES, each)));
    for (const block of blocks) {
      writeSync(1, `a ${block} ${generation}\n`);
      written.set(block, generation);
    }
    if (random.next() < 0.05) await disk.flush();
    const [block, expected] = oneOf(...written);
    const bytes = await disk.read(block * BLOCK_BYTES, BLOCK_BYTES);
    if (!contents(block, expected).equals(bytes)) throw new Error(`block ${block} is lost`);
  }
}
for (let mine = 0; mine < WRITERS; mine++) {
  writer(mine).catch((error: Error & { code?: string }) => {
    // What the guest had asked for when it was saved.
    if (error.code !== "ESHUTDOWN") process.stderr.write(`${error.stack}\n`);
  });
}
setTimeout(
  () => {
    writeSync(1, "s\n");
    void guest.save(saved).then(() => setInterval(() => {}, 1000));
  },
  50 + random.next() * 200,
);
