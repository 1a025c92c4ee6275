/** A process that serves one vbd until it is told to leave, or killed; argument: what it serves, as JSON. */
import { join } from "node:path";
import { BlockBackend, type RingJournals } from "../../src/block/index.ts";
import { mapFile } from "../../src/io/mapped-file.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { openStore } from "../../src/store/registry.ts";
import { type DomainTicket, joinMachine } from "../../src/xen/embedded/index.ts";

export interface Served {
  readonly ticket: DomainTicket;
  /** Of the backend. */
  readonly path: string;
  readonly image: string;
  /** A folder; null for none. */
  readonly journals: string | null;
}

const { ticket, path, image, journals: folder } = JSON.parse(process.argv[2]!) as Served;
const reactor = new Reactor();
const domain = await joinMachine(ticket, reactor);
const filters = [{ name: "delay", parameters: { delay: "3ms" } }];
const store = await openStore(
  { driver: "file", parameters: { file: image }, filters },
  { reactor },
);
const journals: RingJournals = {
  open: (ring, byteLength) => mapFile(join(folder!, `ring-${ring}`), byteLength).bytes,
};
const connected = Promise.withResolvers<void>();
const backend = await BlockBackend.open(domain, path, store, {
  ...(folder === null ? {} : { journals }),
  limits: { maxQueues: 2 },
  ontrace: ({ kind }) => {
    if (kind === "connected") connected.resolve();
  },
});
process.on("message", () => {
  void backend.leave().then(async () => {
    await domain[Symbol.asyncDispose]();
    process.disconnect?.();
  });
});
process.send?.("open");
await connected.promise;
process.send?.("connected");
