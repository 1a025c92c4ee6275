/** Entry of a worker that is a backend domain. */
import { parentPort } from "node:worker_threads";
import { invariant } from "../util/assert.ts";
import { hostBackend } from "./backend-host.ts";
import type { FromBackend, MessageChannelEnd, ToBackend } from "./backend-protocol.ts";

invariant(parentPort !== null, "backend-worker.ts runs in a worker");
const port = parentPort;
const channel: MessageChannelEnd<ToBackend, FromBackend> = {
  post: (message) => port.postMessage(message),
  onmessage: undefined,
};
port.on("message", (message: ToBackend) => channel.onmessage?.(message));
await hostBackend(channel, new AbortController().signal);
port.close();
