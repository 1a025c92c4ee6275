/** Entry of a child process that is a backend domain. It ends with its parent, the channel's end being the sign, and
 * soon: what was answered to the guest gets to the disk, but a request that hangs holds nobody up. */
import { invariant } from "../util/assert.ts";
import { hostBackend } from "./backend-host.ts";
import type { FromBackend, MessageChannelEnd, ToBackend } from "./backend-protocol.ts";

invariant(process.send !== undefined, "backend-process.ts is started with an IPC channel");
/** What a disk is given to end well once nobody is left to ask why it does not. */
const ORPHAN_MILLISECONDS = 5000;

const lost = new AbortController();
const channel: MessageChannelEnd<ToBackend, FromBackend> = {
  post: (message) => {
    // The callback takes the error of a channel that closed meanwhile; `lost` tells of it.
    if (process.connected) process.send?.(message, undefined, undefined, () => {});
  },
  onmessage: undefined,
};
process.on("message", (message) => channel.onmessage?.(message as ToBackend));
process.on("disconnect", () => {
  lost.abort();
  // No way out that a pending request of the disk could keep us from.
  setTimeout(() => process.kill(process.pid, "SIGKILL"), ORPHAN_MILLISECONDS).unref();
});
// A signal to the whole group (Ctrl-C) is the parent's to act on: it closes us when its requests have ended.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
await hostBackend(channel, lost.signal);
if (process.connected) process.disconnect?.();
