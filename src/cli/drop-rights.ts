/** The user that a daemon goes on as (setuid(2)), once it has opened what only root may. */
import {
  closeSync,
  constants,
  fchownSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
} from "node:fs";
import { join } from "node:path";
import { type DaemonSettings, journalsOf } from "./daemon-settings.ts";
import { UsageError } from "./errors.ts";

/** What was opened stays open: /dev/xen's files and the xenstore are root's, the images need not be. The user has its
 * groups, too: that of a disk, say. Before anything is served: journals are the server's own. */
export function dropRights(settings: DaemonSettings): void {
  const { user } = settings;
  if (user === undefined) return;
  try {
    const entry = entriesOf("/etc/passwd").find(([name]) => name === user);
    const [identity, group] = [Number(entry?.[2]), Number(entry?.[3])];
    if (!Number.isInteger(identity) || !Number.isInteger(group)) {
      throw new Error("there is no such user in /etc/passwd");
    }
    giveJournals(journalsOf(settings), identity, group);
    const others = entriesOf("/etc/group")
      .filter(([, , , members = ""]) => members.split(",").includes(user))
      .map(([, , number]) => Number(number));
    process.setgroups!([group, ...others]);
    process.setgid!(group);
    process.setuid!(identity);
  } catch (error) {
    throw new UsageError(`--user ${user}: ${(error as Error).message}`);
  }
}

function entriesOf(path: string): string[][] {
  return readFileSync(path, "utf8")
    .split("\n")
    .map((line) => line.split(":"));
}

/** Of a life before under another user, too. */
function giveJournals(folder: string, identity: number, group: number): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  give(folder, constants.O_DIRECTORY, identity, group);
  for (const name of readdirSync(folder)) give(join(folder, name), 0, identity, group);
}

/** Nothing but what lies there itself: the user before may have put links in the folder, to files of others. */
function give(path: string, flags: number, identity: number, group: number): void {
  const how = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | flags;
  let descriptor: number;
  try {
    descriptor = openSync(path, how);
  } catch (error) {
    // That of a disk that another process of ours has just let go.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  try {
    const found = fstatSync(descriptor);
    if (!found.isDirectory() && (!found.isFile() || found.nlink > 1)) {
      throw new Error(`${path} is no journal`);
    }
    fchownSync(descriptor, identity, group);
  } finally {
    closeSync(descriptor);
  }
}
