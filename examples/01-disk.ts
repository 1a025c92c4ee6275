/** A disk behind a Xen ring: attach it, write, read it back, and see what both ends negotiated. */
import { Machine, openStore } from "vbdkit";

await using machine = await Machine.start();
const store = await openStore({ driver: "memory", parameters: { size: "64M" }, filters: [] });
await using disk = await machine.attach(store, { vdev: "xvda" });

await disk.write(0, Buffer.alloc(4096, "hello "));
await disk.flush();
const bytes = await disk.read(0, 4096);
console.log(Buffer.from(bytes).toString("latin1", 0, 11));

const { negotiated, ring } = await disk.information();
console.log(`${negotiated.ringPages} ring pages, ${negotiated.maxSegments} segments a request`);
console.log(`${ring.requestsProduced} requests, ${ring.responsesProduced} responses`);
