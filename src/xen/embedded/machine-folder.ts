/**
 * The folder through which processes are domains (docs/process-link.md): for each shared domain a folder of its own
 * with its memory, its bell and its xenstore socket.
 *
 * Invariant: the folder is ours and nobody else may enter it, whoever made it: who may enter may write to every
 * domain's memory. What is in it is mode 0700 or 0600.
 */
import { execFile } from "node:child_process";
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  realpathSync,
  rmdirSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { openSharedMemory } from "../../io/shared-memory.ts";
import { XenError } from "../domain.ts";
import { openProcessBell } from "./bell.ts";
import { DomainMemory } from "./domain-memory.ts";
import { isDomid } from "./layout.ts";
import { RemoteNeighbour } from "./neighbours.ts";

export interface DomainPaths {
  readonly folder: string;
  /** A memfd sealed against shrinking, by way of /proc. */
  readonly memory: string;
  /** A FIFO. */
  readonly events: string;
  /** A xenstore that takes whoever connects for this domain. */
  readonly xenstore: string;
}

export function domainPaths(directory: string, domid: number): DomainPaths {
  const folder = join(directory, `domain-${domid}`);
  return {
    folder,
    memory: join(folder, "memory"),
    events: join(folder, "events"),
    xenstore: join(folder, "xenstored.sock"),
  };
}

/** The machine's folder, made when first asked for and removed, if it was made, when disposed. */
export class MachineFolder implements Disposable {
  #path: string | undefined;
  #made = false;
  readonly #wanted: string | undefined;

  constructor(wanted: string | undefined) {
    this.#wanted = wanted;
  }

  /** Throws XenError("ENOTDIR", "EACCES" ...) where the folder that is wanted cannot be had to ourselves. */
  get path(): string {
    if (this.#path === undefined) {
      if (this.#wanted === undefined) {
        this.#path = mkdtempSync(join(tmpdir(), "vbdkit-"));
        this.#made = true;
      } else {
        this.#made = makeFolder(this.#wanted);
        this.#path = ownFolder(this.#wanted);
      }
    }
    return this.#path;
  }

  /** Makes the folder of a domain whose memory is that descriptor of this process. */
  async addDomain(domid: number, descriptor: number): Promise<DomainPaths> {
    const paths = domainPaths(this.path, domid);
    // What a machine that was killed left here names memory that is gone.
    rmSync(paths.folder, { recursive: true, force: true });
    mkdirSync(paths.folder, { mode: 0o700 });
    symlinkSync(`/proc/${process.pid}/fd/${descriptor}`, paths.memory);
    await promisify(execFile)("mkfifo", ["-m", "600", paths.events]);
    return paths;
  }

  removeDomain(domid: number): void {
    rmSync(domainPaths(this.path, domid).folder, { recursive: true, force: true });
  }

  [Symbol.dispose](): void {
    if (!this.#made) return;
    try {
      rmdirSync(this.path);
    } catch {
      // Somebody else keeps files in it, which are not ours to remove.
    }
  }
}

/** False where something of that name is there. */
function makeFolder(path: string): boolean {
  try {
    return mkdirSync(path, { recursive: true, mode: 0o700 }) !== undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** Checks a folder that others may have made; its path. */
function ownFolder(wanted: string): string {
  // A link could name another folder once this one was looked at.
  const path = lstatSync(wanted).isSymbolicLink() ? realpathSync(wanted) : wanted;
  let folder: number;
  try {
    folder = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  } catch (cause) {
    const { code = "EIO", message } = cause as NodeJS.ErrnoException;
    const what = folderErrors[code] ?? message;
    throw new XenError(code, `${wanted}: ${what}`, { cause });
  }
  try {
    const { uid, mode } = fstatSync(folder);
    if (uid !== process.geteuid?.()) {
      throw new XenError("EACCES", `${wanted}: the folder belongs to another user`);
    }
    if ((mode & 0o077) !== 0) {
      const rights = (mode & 0o777).toString(8);
      const message = `${wanted}: others may enter the folder (mode ${rights}); take it for yourself with chmod 700`;
      throw new XenError("EACCES", message);
    }
  } finally {
    closeSync(folder);
  }
  return path;
}

const folderErrors: Readonly<Record<string, string>> = {
  ENOTDIR: "is not a folder",
  EACCES: "the folder belongs to another user",
};

/** A domain that another process shares; undefined where there is none that can be believed. */
export function openNeighbour(directory: string, domid: number): RemoteNeighbour | undefined {
  if (!isDomid(domid)) return undefined;
  const paths = domainPaths(directory, domid);
  using undo = new DisposableStack();
  try {
    const { region, descriptor } = openSharedMemory(paths.memory);
    undo.use(region);
    const memory = DomainMemory.open(region, domid, descriptor);
    const neighbour = new RemoteNeighbour(memory, openProcessBell(paths.events), true);
    undo.move();
    return neighbour;
  } catch {
    return undefined;
  }
}
