/** The published suite behind a ring on the links that need no foreign calls; run by without-koffi.test.ts. */
import { writeFile } from "node:fs/promises";
import { after, before } from "node:test";
import { Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { storeSuite } from "../../src/testing/index.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";
import { whole } from "./whole.ts";

const reactor = new Reactor();
let machine: Machine;
let folder: TemporaryFolder;
let images = 0;
before(async () => {
  folder = await temporaryFolder();
  machine = await Machine.start({ reactor });
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

for (const link of ["thread", "worker"] as const) {
  storeSuite(`a file behind a ring (${link})`, {
    async open() {
      const image = folder.file(`${images++}.img`);
      await writeFile(image, new Uint8Array(2 ** 20));
      const disk = await machine.attach(parseDisk([image], []), { vdev: "xvda", link });
      return { reactor, store: whole(disk) };
    },
  });
}
