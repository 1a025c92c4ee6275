/**
 * A process of `vbdkit daemon`: waits until it is told which guest it is for, then serves that guest's vbds.
 *
 * Invariants: what needs rights is opened before anything of a guest is looked at, and the rights given up where a user is
 * named; whoever loses the daemon finishes what was taken and ends.
 */

import { once } from "node:events";
import { chownSync, mkdirSync, readFileSync } from "node:fs";
import type { VbdService } from "../daemon/vbd-service.ts";
import { openHost } from "../xen/host/index.ts";
import { answerOf, journalsOf, startService } from "./daemon-service.ts";
import {
  type DaemonSettings,
  type FromGuestProcess,
  SETTINGS_VARIABLE,
  type ToGuestProcess,
} from "./daemon-settings.ts";
import { UsageError } from "./errors.ts";
import { StopSignal } from "./signals.ts";

export async function runGuestProcess(): Promise<void> {
  using stop = new StopSignal();
  const settings = JSON.parse(process.env[SETTINGS_VARIABLE] ?? "null") as DaemonSettings | null;
  if (settings === null || process.send === undefined) {
    throw new UsageError(`${SETTINGS_VARIABLE} is for vbdkit daemon's own processes`);
  }
  const told = Promise.withResolvers<number>();
  let service: VbdService | undefined;
  process.on("message", (message: ToGuestProcess) => {
    if ("serve" in message) told.resolve(message.serve);
    else if ("leave" in message) stop.stop("the daemon asked for it");
    else void answer(service, message);
  });
  process.on("disconnect", () => stop.stop("the daemon ended"));
  await using stack = new AsyncDisposableStack();
  const domain = stack.use(await openHost({ backend: true }));
  dropRights(settings);
  const guest = await Promise.race([told.promise, stop.stopped()]);
  if (guest !== undefined && !stop.signal.aborted) {
    service = await startService(domain, settings, guest);
    await stop.stopped();
    await service.leave();
  }
  await stack.disposeAsync();
  if (process.connected) {
    process.disconnect!();
    await once(process, "disconnect").catch(() => {});
  }
}

async function answer(
  service: VbdService | undefined,
  { number, question }: Extract<ToGuestProcess, { question: unknown }>,
): Promise<void> {
  const send = (message: FromGuestProcess) =>
    void process.send?.(message, undefined, undefined, () => {});
  try {
    if (service === undefined) throw new Error("it has only begun");
    send({ number, answer: await answerOf(service, question) });
  } catch (error) {
    send({ number, error: error instanceof Error ? error.message : String(error) });
  }
}

/** What was opened stays open: /dev/xen's files and the xenstore are root's, the images need not be. */
export function dropRights(settings: DaemonSettings): void {
  const { user } = settings;
  if (user === undefined) return;
  try {
    const entry = readFileSync("/etc/passwd", "utf8")
      .split("\n")
      .map((line) => line.split(":"))
      .find(([name]) => name === user);
    const [identity, group] = [Number(entry?.[2]), Number(entry?.[3])];
    if (!Number.isInteger(identity) || !Number.isInteger(group)) {
      throw new Error("there is no such user in /etc/passwd");
    }
    const journals = journalsOf(settings);
    mkdirSync(journals, { recursive: true, mode: 0o700 });
    chownSync(journals, identity, group);
    process.setgroups!([group]);
    process.setgid!(group);
    process.setuid!(identity);
  } catch (error) {
    throw new UsageError(`--user ${user}: ${(error as Error).message}`);
  }
}
