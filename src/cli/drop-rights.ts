/** The user that a daemon goes on as (setuid(2)), once it has opened what only root may. */
import { chownSync, mkdirSync, readFileSync } from "node:fs";
import { type DaemonSettings, journalsOf } from "./daemon-settings.ts";
import { UsageError } from "./errors.ts";

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
