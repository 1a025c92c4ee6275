/**
 * Watches of a client and the events that were not handed on yet.
 *
 * Invariant: of one watch, one path waits at most once, and at most MAX_WAITING_PATHS do: a peer that changes nodes
 * faster than we look makes us look less often, not remember more (XSA-349).
 */

/** More different paths than that are one call for the watched path itself: whoever gets it looks at everything. */
const MAX_WAITING_PATHS = 1024;

interface ClientWatch {
  readonly path: string;
  readonly callback: (path: string) => void;
  waiting: Set<string>;
}

export class ClientWatches {
  readonly #watches = new Map<string, ClientWatch>();
  #next = 1;
  #scheduled = false;

  /** The token of a new watch. */
  add(path: string, callback: (path: string) => void): string {
    const token = (this.#next++).toString(16);
    this.#watches.set(token, { path, callback, waiting: new Set() });
    return token;
  }

  /** No callback from then on. False where it was removed before. */
  remove(token: string): boolean {
    return this.#watches.delete(token);
  }

  clear(): void {
    this.#watches.clear();
  }

  /** An event for a watch that is gone was on its way when it went. */
  arrived(path: string, token: string): void {
    const watch = this.#watches.get(token);
    if (watch === undefined) return;
    watch.waiting.add(path);
    if (watch.waiting.size > MAX_WAITING_PATHS) watch.waiting = new Set([watch.path]);
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => this.#handOn());
  }

  #handOn(): void {
    this.#scheduled = false;
    for (const [token, watch] of [...this.#watches]) {
      const paths = watch.waiting;
      watch.waiting = new Set();
      for (const path of paths) {
        if (this.#watches.get(token) === watch) callAlone(watch.callback, path);
      }
    }
  }
}

/** What a callback throws is its owner's, in a turn of its own: the calls behind it are made all the same. */
function callAlone(callback: (path: string) => void, path: string): void {
  try {
    callback(path);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
