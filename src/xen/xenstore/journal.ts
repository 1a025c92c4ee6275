/**
 * The journal of a xenstore: whatever changes is gathered, and written before anybody hears of it.
 *
 * Invariant: nothing leaves the daemon (an answer, an event, room in a ring) before `commit` has written what came
 * before; one commit is one record, and a turn is never cut in two. The file grows to a multiple of what it says, then
 * a shorter one takes its place while the daemon goes on. Where the file cannot be written, clients are served all the
 * same; then no daemon begins with what is behind: the file is set aside until a whole one can be written.
 */
import { systemClock } from "../../util/clock.ts";
import type { KeptRing } from "./kept-ring.ts";
import type { DomainLimits } from "./limits.ts";
import type { Permissions } from "./permissions.ts";
import { snapshotOf } from "./snapshot.ts";
import type { XenStoreState } from "./state.ts";
import { StateFile } from "./state-file.ts";
import {
  type KeptDomain,
  type KeptWatch,
  OperationWriter,
  type SentState,
} from "./state-operations.ts";
import type { TreeJournal } from "./tree.ts";

export interface JournalOptions {
  /** Every turn waits for the disk. */
  readonly syncTurns: boolean;
  /** Takes lines for people. */
  readonly onNote: (line: string) => void;
}

/** What a power cut may lose, in milliseconds: a disk that syncs ten times a second has time for its work. */
const SYNC_MS = 100;
/** Times that the file is as long as it was when it was whole and short, and the least that is worth the work. */
const GROWTH = 4;
const MIN_GROWTH_BYTES = 2 ** 20;
/** A disk that was full may have room again. */
const RETRY_MS = 5000;

/** The file that is to take the place of the other. */
interface NextFile {
  readonly file: StateFile;
  /** The records that came since it was begun, until it has all that was before. */
  since: Uint8Array[] | undefined;
}

export class Journal implements TreeJournal, AsyncDisposable {
  /** The connections that outlive the daemon. */
  readonly rings: Set<KeptRing> = new Set();
  readonly #state: XenStoreState;
  readonly #path: string;
  readonly #options: JournalOptions;
  readonly #writer = new OperationWriter();
  readonly #touched = new Set<KeptRing>();
  /** undefined before the beginning, after the end, and while it cannot be written. */
  #file: StateFile | undefined;
  /** Bytes from which on a shorter file is made. */
  #mostBytes = 0;
  #next: NextFile | undefined;
  #timer: Disposable | undefined;
  #retry: Disposable | undefined;
  #scheduled = false;
  #syncing = false;
  #recording = false;

  constructor(state: XenStoreState, path: string, options: JournalOptions) {
    this.#state = state;
    this.#path = path;
    this.#options = options;
  }

  /** Writes the whole state, and from then on whatever changes. Throws what the file system says; what was at the path is
   * as it was then. */
  begin(): void {
    this.#file = this.#writeWhole();
    this.#recording = true;
    this.#state.tree.journal = this;
  }

  #writeWhole(): StateFile {
    const file = StateFile.create(this.#path);
    try {
      for (const payload of snapshotOf(this.#state, this.rings)) file.append(payload);
      file.become(this.#path);
    } catch (error) {
      file.discard();
      throw error;
    }
    this.#mostBytes = mostBytesOf(file);
    return file;
  }

  create(path: string, permissions: Permissions, value: Uint8Array): void {
    this.#change()?.create(path, permissions, value);
  }

  setValue(path: string, value: Uint8Array): void {
    this.#change()?.setValue(path, value);
  }

  setPermissions(path: string, permissions: Permissions): void {
    this.#change()?.setPermissions(path, permissions);
  }

  remove(path: string): void {
    this.#change()?.remove(path);
  }

  domain(domain: KeptDomain): void {
    this.#change()?.domain(domain);
  }

  forget(domid: number): void {
    this.#change()?.forget(domid);
  }

  limit(name: keyof DomainLimits, value: number): void {
    this.#change()?.limit(name, value);
  }

  watch(domid: number, watch: KeptWatch): void {
    this.#change()?.watch(domid, watch);
  }

  unwatch(domid: number, path: string, token: string): void {
    this.#change()?.unwatch(domid, path, token);
  }

  sent(domid: number, sent: SentState): void {
    this.#change()?.sent(domid, sent);
  }

  disconnect(ring: KeptRing): void {
    this.#touched.delete(ring);
    this.#change()?.disconnect(ring.domid);
  }

  /** The ring has news, which are asked for at the end of the turn. */
  touch(ring: KeptRing): void {
    if (this.#change() !== undefined) this.#touched.add(ring);
  }

  /** What nobody hears of is written soon, too. */
  #change(): OperationWriter | undefined {
    if (!this.#recording) return undefined;
    if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.commit();
      });
    }
    return this.#writer;
  }

  /** Writes what has changed since the last time. */
  commit(): void {
    if (!this.#recording) return;
    for (const ring of this.#touched) this.#writer.ring(ring.domid, ring.news());
    this.#touched.clear();
    if (this.#writer.length === 0) return;
    const payload = this.#writer.take();
    this.#appendToNext(payload);
    const file = this.#file;
    if (file === undefined) return;
    try {
      file.append(payload);
      if (this.#options.syncTurns) file.sync();
      else this.#syncSoon();
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (this.#next === undefined && file.size > this.#mostBytes) this.#shorten(file);
  }

  #syncSoon(): void {
    if (this.#timer !== undefined || this.#syncing) return;
    this.#timer = systemClock.after(SYNC_MS, () => {
      this.#timer = undefined;
      const file = this.#file;
      if (file === undefined) return;
      this.#syncing = true;
      const { size } = file;
      file.syncLater((error) => {
        this.#syncing = false;
        if (this.#file === undefined) return;
        // What went to a shorter file meanwhile relied on us to begin again.
        if (file !== this.#file) this.#syncSoon();
        else if (error !== null) this.#fail(error);
        else if (file.size !== size) this.#syncSoon();
      });
    });
  }

  /** Makes a whole, short file, piece by piece between the turns, and puts it in the place of `old`. */
  #shorten(old: StateFile): void {
    this.#tryShortening(old, () => {
      const next: NextFile = { file: StateFile.create(this.#path), since: [] };
      this.#next = next;
      // Of this very moment: what comes later is in `since`.
      this.#writePieces(old, next, snapshotOf(this.#state, this.rings));
    });
  }

  #writePieces(old: StateFile, next: NextFile, pieces: Generator<Uint8Array, void>): void {
    const { file } = next;
    const { done, value } = pieces.next();
    if (done !== true) {
      file.append(value);
      setImmediate(() => {
        if (this.#next !== next) return;
        this.#tryShortening(old, () => this.#writePieces(old, next, pieces));
      });
      return;
    }
    const mostBytes = mostBytesOf(file);
    for (const payload of next.since ?? []) file.append(payload);
    next.since = undefined;
    file.syncLater((error) => {
      if (this.#next !== next) return;
      this.#tryShortening(old, () => {
        if (error !== null) throw error;
        // The disk has nearly all of it, so this is short.
        file.become(this.#path);
        this.#next = undefined;
        this.#file = file;
        this.#mostBytes = mostBytes;
        old[Symbol.dispose]();
      });
    });
  }

  #appendToNext(payload: Uint8Array): void {
    const next = this.#next;
    if (next === undefined) return;
    if (next.since !== undefined) next.since.push(Uint8Array.from(payload));
    else if (this.#file !== undefined) {
      this.#tryShortening(this.#file, () => next.file.append(payload));
    }
  }

  /** The long file is as good as ever; it may grow some more before we try again. */
  #tryShortening(old: StateFile, step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#dropNext();
      this.#mostBytes = mostBytesOf(old);
      this.#options.onNote(`the xenstore's state cannot be made shorter: ${messageOf(error)}`);
    }
  }

  /** From here on the file is behind. */
  #fail(error: unknown): void {
    const { onNote } = this.#options;
    const why = messageOf(error);
    this.#dropNext();
    const file = this.#file;
    this.#file = undefined;
    if (file !== undefined) {
      let where = "";
      try {
        where = `; what was kept until then is in ${file.setAside()}`;
      } catch {
        where = `; ${this.#path} is not what clients were told`;
      }
      file[Symbol.dispose]();
      onNote(`the xenstore's state is not kept any more: ${why}${where}`);
    }
    this.#retry ??= systemClock.after(RETRY_MS, () => {
      this.#retry = undefined;
      try {
        // Nothing is to be told twice: what was gathered is part of the whole.
        this.commit();
        this.#file = this.#writeWhole();
        onNote(`the xenstore's state is kept again in ${this.#path}`);
      } catch (again) {
        this.#fail(again);
      }
    });
  }

  #dropNext(): void {
    this.#next?.file.discard();
    this.#next = undefined;
  }

  /** Writes what is left, and records no more: what ends now ends with the daemon, not with the domains.
   * Resolves when others can have the file. Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#recording) return;
    this.commit();
    this.#recording = false;
    this.#state.tree.journal = undefined;
    this.#timer?.[Symbol.dispose]();
    this.#retry?.[Symbol.dispose]();
    this.#dropNext();
    const file = this.#file;
    this.#file = undefined;
    try {
      file?.sync();
    } catch (error) {
      this.#options.onNote(`the xenstore's state may not be on the disk: ${messageOf(error)}`);
    }
    file?.[Symbol.dispose]();
    await file?.closed;
  }
}

function mostBytesOf(file: StateFile): number {
  return Math.max(file.size * GROWTH, file.size + MIN_GROWTH_BYTES);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
