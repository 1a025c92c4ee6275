/**
 * Where the data of a run lies: a folder on a disk and one in memory, which nothing of is left afterwards, also where the
 * run is interrupted.
 */
import { closeSync, fsyncSync, mkdirSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fillPages, PAGE_BYTES, stamp, wordsOf } from "./stamps.ts";

/** Of every file of data. More than the caches of a processor have, and little enough to be made in a second. */
export const DATA_BYTES: number = 256 << 20;
const CHUNK_BYTES = 4 << 20;
/** O_DIRECT needs a file system on a disk, which the system's temporary folder often is not. */
const cacheFolder = join(import.meta.dirname, "../../.cache");

export type Place = "disk" | "memory";

export class Scratch implements Disposable {
  /** On a disk. */
  readonly folder: string;
  readonly #memory: string;
  /** For sockets, whose paths must be short. */
  readonly #sockets: string;
  readonly #files = new Set<string>();
  #socketCount = 0;
  readonly #remove = () => this[Symbol.dispose]();

  constructor() {
    mkdirSync(cacheFolder, { recursive: true });
    this.folder = mkdtempSync(join(cacheFolder, "bench-"));
    this.#memory = mkdtempSync("/dev/shm/vbdkit-bench-");
    this.#sockets = mkdtempSync(join(tmpdir(), "vbdkit-bench-"));
    process.once("exit", this.#remove);
  }

  /** A path for a socket that nobody has used. */
  socket(): string {
    return join(this.#sockets, `${this.#socketCount++}`);
  }

  /** A file of DATA_BYTES of stamped pages (stamps.ts), in the page cache and on the disk; made when it is first asked for,
   * by writes of `chunkBytes`. What was written together is one folio of the page cache, and ext4 looks at all blocks of a
   * folio with each write to it: files that are to be compared are made alike. */
  file(place: Place, name: string, chunkBytes: number = CHUNK_BYTES): string {
    const path = join(place === "disk" ? this.folder : this.#memory, name);
    if (!this.#files.has(path)) {
      this.#files.add(path);
      makeFile(path, chunkBytes);
    }
    return path;
  }

  /** Forgets a file, and with it the memory that it takes. */
  remove(path: string): void {
    this.#files.delete(path);
    rmSync(path, { force: true });
  }

  [Symbol.dispose](): void {
    process.off("exit", this.#remove);
    for (const folder of [this.folder, this.#memory, this.#sockets]) {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

function makeFile(path: string, chunkBytes: number): void {
  const chunk = new Uint8Array(chunkBytes);
  fillPages(chunk, 0);
  const words = wordsOf(chunk);
  const descriptor = openSync(path, "wx");
  try {
    for (let at = 0; at < DATA_BYTES; at += chunkBytes) {
      for (let byte = 0; byte < chunkBytes; byte += PAGE_BYTES) {
        stamp(words, byte / 4, (at + byte) / PAGE_BYTES, 0);
      }
      writeSync(descriptor, chunk, 0, Math.min(chunkBytes, DATA_BYTES - at), at);
    }
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}
