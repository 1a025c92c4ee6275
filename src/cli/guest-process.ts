/**
 * Entry of a process of `vbdkit daemon`: waits until it is told which guest it is for, then serves that guest's vbds. Its
 * own module, and not a command, since a guest may be waiting for it: it loads what it needs and no more.
 *
 * Invariants: what needs rights is opened before anything of a guest is looked at, and the rights given up where a user is
 * named; whoever loses the daemon finishes what was taken and ends.
 */
import { once } from "node:events";
import type { VbdService } from "../daemon/vbd-service.ts";
import { invariant } from "../util/assert.ts";
import { openHost } from "../xen/host/index.ts";
import { answerOf, startService } from "./daemon-service.ts";
import type { DaemonSettings, FromGuestProcess, ToGuestProcess } from "./daemon-settings.ts";
import { dropRights } from "./drop-rights.ts";
import { messageOf, report } from "./errors.ts";
import { showNotes } from "./output.ts";
import { StopSignal } from "./signals.ts";

invariant(process.send !== undefined, "guest-process.ts is started with an IPC channel");
const told = Promise.withResolvers<number>();
const settled = Promise.withResolvers<DaemonSettings>();
let service: VbdService | undefined;
let verbose = false;

function tell(message: FromGuestProcess): void {
  if (process.connected) process.send?.(message, undefined, undefined, () => {});
}

async function answer({
  number,
  question,
}: Extract<ToGuestProcess, { question: unknown }>): Promise<void> {
  try {
    if (service === undefined) throw new Error("it has only begun");
    tell({ number, answer: await answerOf(service, question) });
  } catch (error) {
    tell({ number, error: messageOf(error) });
  }
}

async function serve(stop: StopSignal): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const domain = stack.use(await openHost({ backend: true }));
  const settings = await Promise.race([settled.promise, stop.stopped()]);
  if (settings === undefined) return;
  verbose = settings.verbose;
  dropRights(settings);
  tell({ ready: true });
  const guest = await Promise.race([told.promise, stop.stopped()]);
  if (guest === undefined || stop.signal.aborted) return;
  process.title = `vbdkit daemon: domain ${guest}`;
  service = await startService(domain, settings, guest);
  await stop.stopped();
  await service.leave();
}

showNotes();
{
  using stop = new StopSignal();
  process.on("message", (message: ToGuestProcess) => {
    if ("setup" in message) settled.resolve(message.setup);
    else if ("serve" in message) told.resolve(message.serve);
    else if ("leave" in message) stop.stop("the daemon asked for it");
    else void answer(message);
  });
  process.on("disconnect", () => stop.stop("the daemon ended"));
  try {
    await serve(stop);
  } catch (error) {
    report(error, verbose);
  }
}
if (process.connected) {
  process.disconnect?.();
  await once(process, "disconnect").catch(() => {});
}
