/**
 * Ending with whoever started us. npm and npx pass a signal to their shell alone, and a shell that is killed leaves
 * its child behind: a server nobody asked for, holding a lock on the image.
 */
import { readFileSync } from "node:fs";

/** A person does not notice half a second; the machine does not notice two looks a second. */
const LOOK_MS = 500;

/** Under npm or npx a server ends with them, as does everything else that was started by `npm start`. */
export function startedByNpm(environment: NodeJS.ProcessEnv = process.env): boolean {
  return environment.npm_lifecycle_event !== undefined || environment.npm_command === "exec";
}

/** Whether bin/vbdkit.js, on a Node that is too old, started us in its place: it is no parent of ours to outlive. */
export function startedByOlderNode(): boolean {
  return process.env.VBDKIT_STARTED_BY === String(process.ppid);
}

/** Calls back once when our parent is gone, or (where the parent is only npm's shell) the parent's parent. */
export function onOrphaned(callback: () => void): Disposable {
  const parent = process.ppid;
  const grandparent = startedByNpm() && isShell(parent) ? parentOf(parent) : undefined;
  const timer = setInterval(() => {
    const lost =
      process.ppid !== parent || (grandparent !== undefined && parentOf(parent) !== grandparent);
    if (!lost) return;
    clearInterval(timer);
    callback();
  }, LOOK_MS);
  timer.unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

function isShell(pid: number): boolean {
  try {
    return /^(ba|da|z|k)?sh$/.test(readFileSync(`/proc/${pid}/comm`, "utf8").trim());
  } catch {
    return false;
  }
}

/** Field 4 of /proc/PID/stat, after the name in brackets; undefined without a /proc. */
function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return undefined;
  }
}
