/**
 * Listening sockets that whoever started us opened (sd_listen_fds(3)): systemd, systemd-socket-activate, nbdinfo and
 * nbdcopy with `[ vbdkit serve ... ]`, QEMU.
 *
 * Invariant: variables that were meant for another process (LISTEN_PID) are not ours to act on.
 */
import { readFileSync, readlinkSync } from "node:fs";
import { UsageError } from "./errors.ts";

/** SD_LISTEN_FDS_START: after standard input, output and error. */
const FIRST_DESCRIPTOR = 3;
/** Nobody opens more for a disk server; a number that is mistyped is not tried one by one. */
const MAX_SOCKETS = 64;

/** Descriptors of the sockets that are for us; none where we were started otherwise. Removes the variables, so that no
 * child of ours takes them for its own. */
export function takeInheritedSockets(
  environment: NodeJS.ProcessEnv = process.env,
  pid: number = process.pid,
): number[] {
  const { LISTEN_PID, LISTEN_FDS } = environment;
  if (LISTEN_PID === undefined || Number(LISTEN_PID) !== pid) return [];
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]) delete environment[name];
  const count = Number(LISTEN_FDS ?? 0);
  if (!/^\d*$/.test(LISTEN_FDS ?? "") || count > MAX_SOCKETS) {
    throw new UsageError(`LISTEN_FDS=${LISTEN_FDS} is no number of sockets, 0 to ${MAX_SOCKETS}`);
  }
  return Array.from({ length: count }, (_, index) => FIRST_DESCRIPTOR + index);
}

/** The path that a Unix socket is bound to, which Node does not tell of one that it did not open; undefined for others
 * and without a /proc. */
export function pathOfSocket(descriptor: number): string | undefined {
  try {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${descriptor}`))?.[1];
    // Num RefCount Protocol Flags Type St Inode Path
    for (const line of readFileSync("/proc/net/unix", "utf8").split("\n")) {
      const [, found, path] = /^(?:\S+ +){6}(\d+) (.+)$/.exec(line) ?? [];
      if (found !== undefined && found === inode) return path;
    }
  } catch {
    // No /proc: the socket works all the same, its URI has no path.
  }
  return undefined;
}
