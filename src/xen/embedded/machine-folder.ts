/**
 * The folder through which processes are domains (docs/process-link.md): for each shared domain a folder of its own
 * with its memory, its bell and its xenstore socket.
 *
 * Everything in it is mode 0700 or 0600: who may enter may write to every domain's memory.
 */
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { openSharedMemory } from "../../io/shared-memory.ts";
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

  get path(): string {
    if (this.#path === undefined) {
      const made =
        this.#wanted === undefined
          ? mkdtempSync(join(tmpdir(), "vbdkit-"))
          : mkdirSync(this.#wanted, { recursive: true, mode: 0o700 });
      this.#made = made !== undefined;
      this.#path = this.#wanted ?? made!;
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
