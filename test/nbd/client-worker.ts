/** A worker that opens the export it is given, closes it, and tells of what Node warned of. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { Reactor } from "../../src/io/reactor.ts";
import { openNbdStore } from "../../src/nbd/index.ts";

const warnings: string[] = [];
process.on("warning", ({ message }) => warnings.push(message));
const store = await openNbdStore({ reactor: new Reactor(), uri: workerData as string });
await store[Symbol.asyncDispose]();
await nextTurn();
parentPort!.postMessage(warnings);
