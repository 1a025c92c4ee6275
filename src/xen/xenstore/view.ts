/** What a request sees and changes: the tree itself, or a transaction's picture of it. */
import type { Permissions } from "./permissions.ts";
import type { PlacedNode, Tree, TreeNode } from "./tree.ts";
import { type Change, readableBy, type WatchTable } from "./watches.ts";

export interface View {
  get(path: string): TreeNode | undefined;
  /** Who may know of `path` now, for `changed`. */
  readable(path: string): readonly Permissions[];
  /** The names of the children at `path` were looked at. */
  listed(path: string): void;
  /** Nodes that `domid` owns with `more` of them, as its limit counts them. */
  owned(domid: number, more: number): number;
  ownedBytes(domid: number): number;
  create(path: string, permissions: Permissions, value?: Uint8Array): void;
  setValue(path: string, value: Uint8Array): void;
  setPermissions(path: string, permissions: Permissions): void;
  remove(path: string): PlacedNode[];
  /** Says that `path` changed: at once, or when the transaction ends well. `before` names who could read it. */
  changed(path: string, exact: boolean, before: readonly Permissions[]): void;
  /** A change was refused when it had begun, as the C daemon does it: a transaction is then only good to be abandoned. */
  spoil(): void;
}

/** Changes take effect, and are heard of, at once. */
export class DirectView implements View {
  readonly #tree: Tree;
  readonly #watches: WatchTable;

  constructor(tree: Tree, watches: WatchTable) {
    this.#tree = tree;
    this.#watches = watches;
  }

  get(path: string): TreeNode | undefined {
    return this.#tree.get(path);
  }

  readable(path: string): readonly Permissions[] {
    return readableBy(this.#tree, path);
  }

  /** What was seen is true: nothing can change before the answer. */
  listed(): void {}

  /** Nothing was changed. */
  spoil(): void {}

  owned(domid: number, more: number): number {
    return this.#tree.owned(domid) + more;
  }

  ownedBytes(domid: number): number {
    return this.#tree.ownedBytes(domid);
  }

  create(path: string, permissions: Permissions, value?: Uint8Array): void {
    this.#tree.create(path, permissions, value);
  }

  setValue(path: string, value: Uint8Array): void {
    this.#tree.setValue(path, value);
  }

  setPermissions(path: string, permissions: Permissions): void {
    this.#tree.setPermissions(path, permissions);
  }

  remove(path: string): PlacedNode[] {
    return this.#tree.remove(path);
  }

  changed(path: string, exact: boolean, before: readonly Permissions[]): void {
    // Most changes are nobody's news.
    if (!this.#watches.hears(path, exact)) return;
    const change: Change = { path, exact, readable: [...before, ...readableBy(this.#tree, path)] };
    this.#watches.fire(change);
  }
}
