/**
 * The file of records in which a xenstore outlives its daemon: a header, then records, each numbered and with check sums
 * of its own (docs/xenstore.md has every byte).
 *
 * Invariant: what stands in a file is never changed, only added to; a file takes the place of another whole, by rename.
 * An end that was not written to its end is told from damage: after damage, more records follow. Check sums begin with
 * a number that only the file knows, so that no value a guest writes looks like a record.
 */
import { randomInt } from "node:crypto";
import {
  closeSync,
  constants,
  fchmodSync,
  fdatasync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writevSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import { ffi } from "../../io/ffi.ts";
import { ImageUse, lockImage } from "../../io/image-lock.ts";
import { XenError } from "../domain.ts";

const MAGIC = "vbdkitxs";
const VERSION = 1;
const HEADER_BYTES = 20;
/** At the beginning of every record: "xsr" and a byte that is no text. */
const RECORD_MAGIC = 0x9f727378;
const RECORD_HEADER_BYTES = 20;
/** Longer than any turn: one that changed so much would not have had the memory. */
const MAX_RECORD_BYTES = 2 ** 30;
/** Bytes that are looked through at once for a record after damage. */
const WINDOW_BYTES = 2 ** 20;
const MODE = 0o600;

export class StateFile implements Disposable {
  #path: string;
  readonly #descriptor: number;
  #salt = 0;
  /** It has not become the state. */
  #provisional = false;
  /** Where the next record goes, and its number. */
  #end = 0;
  #number = 0;
  #closed = false;
  /** Resolves when others can have it. */
  readonly closed: Promise<void>;
  readonly #resolveClosed: () => void;
  #syncing = false;

  private constructor(path: string, descriptor: number) {
    this.#path = path;
    this.#descriptor = descriptor;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#resolveClosed = resolve;
  }

  /** Opens the file at `path` and keeps others from it; undefined where there is none. Throws XenError("EBUSY") where
   * another daemon uses it, and ("EINVAL") where it is no file of this kind. */
  static open(path: string): StateFile | undefined {
    for (;;) {
      const file = StateFile.#openLocked(path, 0);
      if (file === undefined) return undefined;
      // Its user may have put another one in its place and ended, just before we locked it.
      if (!isAt(path, file.#descriptor)) file[Symbol.dispose]();
      else return file.#readHeader();
    }
  }

  /** An empty file beside `path` that is to take its place. Throws XenError("EBUSY") where another daemon makes one. */
  static create(path: string): StateFile {
    const file = StateFile.#openLocked(`${path}.new`, constants.O_CREAT | constants.O_NOFOLLOW)!;
    try {
      if (!isAt(file.#path, file.#descriptor)) throw inUse(path);
      fchmodSync(file.#descriptor, MODE);
      // What a daemon left that was killed while it made one.
      ftruncateSync(file.#descriptor, 0);
      file.#provisional = true;
      file.#writeHeader();
      return file;
    } catch (error) {
      file[Symbol.dispose]();
      throw error;
    }
  }

  static #openLocked(path: string, flags: number): StateFile | undefined {
    const { O_RDWR, O_NONBLOCK } = constants;
    let descriptor: number;
    try {
      descriptor = openSync(path, O_RDWR | O_NONBLOCK | flags, MODE);
    } catch (cause) {
      const { code = "EIO" } = cause as NodeJS.ErrnoException;
      if (code === "ENOENT" && flags === 0) return undefined;
      throw new XenError(code, `the xenstore's state cannot be opened: ${message(cause)}`, {
        cause,
      });
    }
    const file = new StateFile(path, descriptor);
    try {
      if (!fstatSync(descriptor).isFile()) throw new XenError("EINVAL", `${path}: not a file`);
      const calls = ffi();
      const { write } = ImageUse;
      if (calls !== undefined && lockImage(calls, descriptor, write, write) !== undefined) {
        throw inUse(path);
      }
    } catch (error) {
      file[Symbol.dispose]();
      throw error;
    }
    return file;
  }

  /** Bytes of all records, with the header. */
  get size(): number {
    return this.#end;
  }

  /** Of the file itself, however much of it is records. */
  get fileBytes(): number {
    return fstatSync(this.#descriptor).size;
  }

  #writeHeader(): void {
    const header = Buffer.alloc(HEADER_BYTES);
    header.write(MAGIC, "latin1");
    header.writeUInt32LE(VERSION, 8);
    this.#salt = randomInt(2 ** 32);
    header.writeUInt32LE(this.#salt, 12);
    header.writeUInt32LE(crc32(header.subarray(0, 16)), 16);
    this.#write([header]);
  }

  #readHeader(): this {
    const header = Buffer.alloc(HEADER_BYTES);
    const wrong =
      this.#read(header, 0) < HEADER_BYTES || header.toString("latin1", 0, 8) !== MAGIC
        ? "it does not begin as one"
        : header.readUInt32LE(16) !== crc32(header.subarray(0, 16))
          ? "the check sum of its header is wrong"
          : header.readUInt32LE(8) !== VERSION
            ? `it has version ${header.readUInt32LE(8)}, and this is ${VERSION}`
            : undefined;
    if (wrong !== undefined) {
      this[Symbol.dispose]();
      throw new XenError("EINVAL", `${this.#path} is no state of a xenstore: ${wrong}`);
    }
    this.#salt = header.readUInt32LE(12);
    this.#end = HEADER_BYTES;
    return this;
  }

  /** The next record; undefined at the end, which may be one that was cut off: then `fileBytes` is more than `size`.
   * Throws XenError("EINVAL") where the file is damaged. */
  next(): Buffer | undefined {
    const size = this.fileBytes;
    const at = this.#end;
    const header = Buffer.alloc(RECORD_HEADER_BYTES);
    if (this.#read(header, at) < RECORD_HEADER_BYTES) return undefined;
    if (!this.#isHeader(header)) return this.#endOrDamage(at + 1);
    const length = header.readUInt32LE(4);
    const number = header.readUInt32LE(8);
    if (number !== this.#number) throw this.damaged(`record ${number} follows`);
    const start = at + RECORD_HEADER_BYTES;
    if (length > size - start) return undefined;
    const payload = Buffer.allocUnsafe(length);
    this.#read(payload, start);
    if (crc32(payload, this.#salt) !== header.readUInt32LE(16)) return this.#endOrDamage(start);
    this.#end = start + length;
    this.#number++;
    return payload;
  }

  #isHeader(header: Buffer): boolean {
    return (
      header.readUInt32LE(0) === RECORD_MAGIC &&
      header.readUInt32LE(12) === crc32(header.subarray(0, 12), this.#salt) &&
      header.readUInt32LE(4) <= MAX_RECORD_BYTES
    );
  }

  /** undefined, where no later record begins at `from` or behind. */
  #endOrDamage(from: number): undefined {
    const magic = Buffer.alloc(4);
    magic.writeUInt32LE(RECORD_MAGIC);
    const window = Buffer.allocUnsafe(WINDOW_BYTES);
    for (let at = from; ; at += WINDOW_BYTES - RECORD_HEADER_BYTES + 1) {
      const bytes = window.subarray(0, this.#read(window, at));
      for (let found = bytes.indexOf(magic); found >= 0; found = bytes.indexOf(magic, found + 1)) {
        const header = bytes.subarray(found, found + RECORD_HEADER_BYTES);
        if (header.length < RECORD_HEADER_BYTES || !this.#isHeader(header)) continue;
        throw this.damaged(`the bytes from ${this.#end} to ${at + found} are wrong`);
      }
      if (bytes.length < window.length) return undefined;
    }
  }

  /** For what a caller finds in the record that it was given last. */
  inLastRecord(error: Error): XenError {
    this.#number--;
    return this.damaged(error.message);
  }

  damaged(what: string): XenError {
    return new XenError(
      "EINVAL",
      `${this.#path} is damaged at record ${this.#number}: ${what}. It was left as it is: ` +
        "put a copy of it in its place, or move it away to begin with an empty xenstore",
    );
  }

  /** Adds a record. Throws what the file system says; the file is as it was then, as far as that can be. */
  append(payload: Uint8Array): void {
    const header = Buffer.allocUnsafe(RECORD_HEADER_BYTES);
    header.writeUInt32LE(RECORD_MAGIC, 0);
    header.writeUInt32LE(payload.length, 4);
    header.writeUInt32LE(this.#number, 8);
    header.writeUInt32LE(crc32(header.subarray(0, 12), this.#salt), 12);
    header.writeUInt32LE(crc32(payload, this.#salt), 16);
    this.#write([header, payload]);
    this.#number++;
  }

  #write(parts: Uint8Array[]): void {
    const bytes = parts.reduce((sum, part) => sum + part.length, 0);
    try {
      let written = writevSync(this.#descriptor, parts, this.#end);
      while (written < bytes) {
        // A disk that is full takes a part, and nothing the next time.
        const rest = Buffer.concat(parts).subarray(written);
        written += writevSync(this.#descriptor, [rest], this.#end + written);
      }
    } catch (error) {
      try {
        ftruncateSync(this.#descriptor, this.#end);
      } catch {
        // It ends with a record that is cut off, which is as good.
      }
      throw error;
    }
    this.#end += bytes;
  }

  /** As many bytes from `at` on as there are. */
  #read(into: Buffer, at: number): number {
    let had = 0;
    while (had < into.length) {
      const more = readSync(this.#descriptor, into, had, into.length - had, at + had);
      if (more === 0) break;
      had += more;
    }
    return had;
  }

  /** Returns when the disk has it all. */
  sync(): void {
    fdatasyncSync(this.#descriptor);
  }

  /** Calls back, with an error or without, when the disk has all that was there at this call. */
  syncLater(done: (error: Error | null) => void): void {
    this.#syncing = true;
    fdatasync(this.#descriptor, (error) => {
      this.#syncing = false;
      if (this.#closed) this.#close();
      done(error);
    });
  }

  /** Takes the place of what is at `path`, when the disk has it. */
  become(path: string): void {
    this.sync();
    renameSync(this.#path, path);
    this.#path = path;
    this.#provisional = false;
    try {
      const folder = openSync(dirname(path), constants.O_RDONLY);
      try {
        fsyncSync(folder);
      } finally {
        closeSync(folder);
      }
    } catch {
      // Not every file system can; after a power cut the file may be the one before.
    }
  }

  /** Under another name, so that no daemon takes it for the state. */
  setAside(): string {
    const aside = `${this.#path}.incomplete`;
    renameSync(this.#path, aside);
    return aside;
  }

  /** For a file that is not to take any place. */
  discard(): void {
    if (this.#provisional) rmSync(this.#path, { force: true });
    this[Symbol.dispose]();
  }

  /** Closes the file. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    // A descriptor that somebody waits on stays what it is.
    if (!this.#syncing) this.#close();
  }

  #close(): void {
    closeSync(this.#descriptor);
    this.#resolveClosed();
  }
}

/** The path itself, where a file or a link is there; beside it, a new one takes its place. */
export function realStatePath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    // A new file, in a folder that is there; else opening says that it is not.
    return join(dirname(path), basename(path));
  }
}

function isAt(path: string, descriptor: number): boolean {
  const here: Stats | undefined = statSync(path, { throwIfNoEntry: false });
  const { dev, ino } = fstatSync(descriptor);
  return here?.dev === dev && here.ino === ino;
}

function inUse(path: string): XenError {
  return new XenError("EBUSY", `${path} is in use: another daemon keeps its xenstore there`);
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
