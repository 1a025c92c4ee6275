/**
 * Watches, and who hears of a change (docs/misc/xenstore.txt, WATCH; fire_watches and watch_permitted in the C daemon).
 *
 * Invariant: an event goes only to a client that may read the node or its parent, as they are or as they were before
 * the change (XSA-115). The work of a change is one look-up per name of its path, however many watches there are.
 */
import { parentPath } from "./paths.ts";
import { accessOf, type Permissions, READ, type Subject } from "./permissions.ts";
import type { TreeNode } from "./tree.ts";

/** Whoever sets watches. */
export interface Watcher {
  readonly subject: Subject;
  /** Something happened at `path`, which is what the watch hears of. */
  deliver(watch: Watch, path: string): void;
}

export interface Watch {
  readonly watcher: Watcher;
  readonly path: string;
  readonly token: string;
  /** What events leave out at the beginning of paths: the watcher gave a relative one. */
  readonly prefix: string;
  /** Events come from so many levels below the path; undefined for all. */
  readonly depth: number | undefined;
  /** Of all watches, the older first: the order of events. */
  readonly number: number;
}

export interface Change {
  readonly path: string;
  /** Only watches of this very path hear of it: the children of a removed node, domains that come and go. */
  readonly exact: boolean;
  /** Who may read any of these may know. */
  readonly readable: readonly Permissions[];
}

/** The permissions that let somebody know of `path`: its own, and its parent's. */
export function readableBy(
  tree: { get(path: string): TreeNode | undefined },
  path: string,
): Permissions[] {
  const nodes = [tree.get(path), tree.get(parentPath(path))];
  return nodes.filter((node) => node !== undefined).map((node) => node.permissions);
}

/** A path as the watcher knows it. */
export function relativeTo(watch: Watch, path: string): string {
  return path.slice(watch.prefix.length);
}

export class WatchTable {
  readonly #byPath = new Map<string, Set<Watch>>();
  #next = 0;

  add(watch: Omit<Watch, "number">): Watch {
    const numbered = { ...watch, number: this.#next++ };
    const others = this.#byPath.get(watch.path);
    if (others === undefined) this.#byPath.set(watch.path, new Set([numbered]));
    else others.add(numbered);
    return numbered;
  }

  /** Does nothing where it was removed before. */
  remove(watch: Watch): void {
    const others = this.#byPath.get(watch.path);
    if (others?.delete(watch) === true && others.size === 0) this.#byPath.delete(watch.path);
  }

  fire(change: Change): void {
    for (const watch of this.#permitted(change)) watch.watcher.deliver(watch, change.path);
  }

  /** A domain came or went: for those who may read the special node itself. Who gave a depth hears of its number, and so
   * does who watches for that domain alone. */
  fireSpecial(path: string, domid: number, permissions: Permissions): void {
    const named = `${path}/${domid}`;
    const hearing: [Watch, string][] = [];
    for (const watch of this.#byPath.get(path) ?? []) {
      if (watch.depth === undefined) hearing.push([watch, path]);
      else if (watch.depth > 0) hearing.push([watch, named]);
    }
    for (const watch of this.#byPath.get(named) ?? []) hearing.push([watch, named]);
    for (const [watch, heard] of hearing.sort(([a], [b]) => a.number - b.number)) {
      const { watcher } = watch;
      if (accessOf(watcher.subject, permissions) & READ) watcher.deliver(watch, heard);
    }
  }

  /** Tells of all that one commit changed. A watch that has heard `bytes` of paths hears of its own path next, and no
   * more of this. */
  fireAll(changes: readonly Change[], bytes: number): void {
    const heard = new Map<Watch, number>();
    for (const change of changes) {
      for (const watch of this.#permitted(change)) {
        const before = heard.get(watch) ?? 0;
        if (before >= bytes) continue;
        const after = before + change.path.length;
        heard.set(watch, after);
        watch.watcher.deliver(watch, after < bytes ? change.path : watch.path);
      }
    }
  }

  #permitted(change: Change): Watch[] {
    return this.#hearing(change).filter(({ watcher: { subject } }) =>
      change.readable.some((permissions) => accessOf(subject, permissions) & READ),
    );
  }

  /** Whether any watch could hear of it. */
  hears(path: string, exact: boolean): boolean {
    if (this.#byPath.size === 0) return false;
    if (this.#byPath.has(path)) return true;
    for (let above = path; !exact && above !== "/"; ) {
      above = parentPath(above);
      if (this.#byPath.has(above)) return true;
    }
    return false;
  }

  #hearing({ path, exact }: Change): Watch[] {
    const found = [...(this.#byPath.get(path) ?? [])];
    if (exact) return found;
    let above = path;
    for (let levels = 1; above !== "/"; levels++) {
      above = parentPath(above);
      for (const watch of this.#byPath.get(above) ?? []) {
        if (watch.depth === undefined || levels <= watch.depth) found.push(watch);
      }
    }
    return found.sort((a, b) => a.number - b.number);
  }
}
