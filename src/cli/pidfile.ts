/**
 * `--pidfile`: the process id for who stops or watches the server.
 *
 * Invariant: a file that names another live process, or that is no pidfile, is never written to nor removed.
 */
import { closeSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";

/** A pidfile is a number and a newline; who names a larger file means another one. */
const MAX_PIDFILE_BYTES = 32;

/** Throws an Error where the file names a live process or is something else. */
export function checkPidfile(path: string): void {
  const text = beginningOf(path);
  if (text === undefined || text.trim() === "") return;
  if (!/^\d{1,10}\n?$/.test(text)) throw new Error(`${path}: is not a pidfile; choose another`);
  const pid = Number(text);
  if (pid !== process.pid && isAlive(pid)) {
    throw new Error(`${path}: process ${pid} has it and runs; stop it, or choose another pidfile`);
  }
}

/** Writes our pid. Disposal removes the file where it is still ours. */
export function takePidfile(path: string): Disposable {
  checkPidfile(path);
  const text = `${process.pid}\n`;
  writeFileSync(path, text);
  const release = () => {
    try {
      if (beginningOf(path) === text) rmSync(path, { force: true });
    } catch {
      // It has become something else, or its folder is closed to us: not ours any more.
    }
  };
  process.once("exit", release);
  return {
    [Symbol.dispose]() {
      process.off("exit", release);
      release();
    },
  };
}

function beginningOf(path: string): string | undefined {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    const bytes = Buffer.alloc(MAX_PIDFILE_BYTES);
    return bytes.toString("latin1", 0, readSync(file, bytes));
  } finally {
    closeSync(file);
  }
}

function isAlive(pid: number): boolean {
  if (pid === 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
