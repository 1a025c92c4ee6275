/**
 * A transaction: a snapshot of the tree, the nodes it looked at or changed, and the changes to repeat when it ends
 * (docs/misc/xenstore.txt, TRANSACTION_START and TRANSACTION_END).
 *
 * Invariant: it commits whole or not at all, and only when nothing it looked at has changed in the tree since its
 * beginning: the nodes, and the lists of children where it listed or removed them. So two that make different nodes in
 * one directory do not meet, where the C daemon would have one begin again. What it remembers is bounded, and it never
 * touches the tree before every check has passed (XSA-414, 415, 421).
 */
import { parentPath } from "./paths.ts";
import { ownerOf, type Permissions } from "./permissions.ts";
import type { PlacedNode, Tree, TreeNode } from "./tree.ts";
import type { View } from "./view.ts";
import { type Change, readableBy, type WatchTable } from "./watches.ts";

interface TouchedNode {
  /** When the transaction began; undefined where there was no node. */
  readonly generation: number | undefined;
  readonly listingGeneration: number | undefined;
  /** Whether the list of children must be what it was. */
  listed: boolean;
  /** Of the node then: who could know of it. */
  readonly permissions: Permissions | undefined;
  /** Watches to fire: undefined for none. */
  exact: boolean | undefined;
}

export interface TransactionBounds {
  /** Nodes it may look at or change. */
  readonly touchedNodes: number;
  /** Nodes that `domid` may own at the end. */
  readonly domid: number;
  readonly ownedNodes: number;
}

export class Transaction implements View {
  /** As the tree was when the transaction began, but for what it changed, which it touched before. */
  readonly #picture: Tree;
  readonly #tree: Tree;
  readonly #bounds: TransactionBounds;
  readonly #touched = new Map<string, TouchedNode>();
  /** Changed paths and whether the node was made by us; in the order of making, so parents precede children. */
  readonly #changed = new Map<string, boolean>();
  /** Written, and not in the picture yet, which most transactions never need. */
  readonly #values = new Map<string, Uint8Array>();
  readonly #culprits = new Set<number>();
  #conflict = false;
  #spoilt = false;
  #refusal: "ENOSPC" | "EIO" | undefined;

  constructor(tree: Tree, bounds: TransactionBounds) {
    this.#tree = tree;
    this.#picture = tree.snapshot();
    this.#bounds = bounds;
  }

  /** Of the requests that name it; `refusal` is about the one that began last. */
  beginRequest(): void {
    this.#refusal = undefined;
  }

  /** From now on it can only end with EAGAIN. */
  lose(): void {
    this.#conflict = true;
  }

  /** The request needs more nodes than the transaction may touch. From then on it can only be abandoned. */
  get refusal(): "ENOSPC" | "EIO" | undefined {
    return this.#refusal;
  }

  /** After EAGAIN: the domains whose changes it met. */
  get culprits(): Iterable<number> {
    return this.#culprits;
  }

  get(path: string): TreeNode | undefined {
    if (!this.#touch(path)) return undefined;
    if (this.#values.has(path)) this.#paint();
    return this.#picture.get(path);
  }

  /** That of each node was kept when it was touched. */
  readable(): readonly Permissions[] {
    return [];
  }

  listed(path: string): void {
    this.#touch(path);
    const touched = this.#touched.get(path);
    if (touched !== undefined) touched.listed = true;
  }

  /** Its own nodes are counted when it ends: until then it may make them while there is room for one. */
  owned(domid: number, more: number): number {
    return this.#tree.owned(domid) + Math.min(more, 1);
  }

  ownedBytes(domid: number): number {
    this.#paint();
    return this.#tree.ownedBytes(domid) + this.#picture.ownedBytes(domid);
  }

  create(path: string, permissions: Permissions, value?: Uint8Array): void {
    if (!this.#touch(path) || !this.#touch(parentPath(path)) || this.#refusal !== undefined) return;
    this.#picture.create(path, permissions, value);
    this.#changed.delete(path);
    this.#changed.set(path, true);
  }

  setValue(path: string, value: Uint8Array): void {
    if (!this.#touch(path)) return;
    this.#values.set(path, value);
    this.#change(path);
  }

  setPermissions(path: string, permissions: Permissions): void {
    if (!this.#touch(path)) return;
    this.#picture.setPermissions(path, permissions);
    this.#change(path);
  }

  remove(path: string): PlacedNode[] {
    if (!this.#touch(parentPath(path))) return [];
    for (const node of this.#picture.below(path)) this.listed(node.path);
    if (this.#refusal !== undefined) {
      this.#refusal = "EIO";
      return [];
    }
    this.#paint();
    const removed = this.#picture.remove(path);
    for (const node of removed) this.#change(node.path);
    return removed;
  }

  changed(path: string, exact: boolean): void {
    const touched = this.#touched.get(path);
    // A change of all below includes that of the node alone.
    if (touched !== undefined) touched.exact = exact && touched.exact !== false;
  }

  spoil(): void {
    this.#spoilt = true;
  }

  /** A domain died: what we were about to give it must not reach the next domain of that number (XSA-322, 417). */
  forgetDomain(domid: number): void {
    for (const path of this.#changed.keys()) {
      const permissions = this.#picture.get(path)?.permissions ?? [];
      if (permissions.some((entry) => entry.domid === domid)) this.#conflict = true;
    }
  }

  /** Repeats the changes in `tree` and returns what watches are to hear. */
  commit(
    tree: Tree,
    watches: Pick<WatchTable, "hears">,
  ): Change[] | "EAGAIN" | "ENOSPC" | "ENOMEM" {
    if (this.#spoilt) return "ENOMEM";
    if (this.#conflict) return "EAGAIN";
    for (const [path, touched] of this.#touched) {
      const node = tree.get(path);
      if (node?.generation !== touched.generation) {
        this.#culprits.add(node?.author ?? removerOf(tree, path));
      } else if (touched.listed && node?.listingGeneration !== touched.listingGeneration) {
        this.#culprits.add(node?.listingAuthor ?? 0);
      }
    }
    if (this.#culprits.size > 0) return "EAGAIN";
    if (!this.#ownsFewEnough(tree)) return "ENOSPC";
    for (const [path, made] of this.#changed) {
      const stays = !made && this.#picture.get(path) !== undefined;
      if (!stays && tree.get(path) !== undefined) tree.remove(path);
    }
    for (const [path, made] of this.#changed) {
      const node = this.#picture.get(path);
      if (node === undefined) continue;
      const value = this.#values.get(path) ?? node.value;
      if (made) tree.create(path, node.permissions, value);
      else this.#update(tree, path, value, node.permissions);
    }
    return this.#changes(tree, watches);
  }

  #update(tree: Tree, path: string, value: Uint8Array, permissions: Permissions): void {
    tree.setValue(path, value);
    if (tree.get(path)?.permissions !== permissions) tree.setPermissions(path, permissions);
  }

  /** Those that somebody hears of. */
  #changes(tree: Tree, watches: Pick<WatchTable, "hears">): Change[] {
    const changes: Change[] = [];
    const placed = new Set<string>();
    for (const [path, { generation, exact, permissions }] of this.#touched) {
      // What was made and removed again was never there for anybody else.
      const seen = generation !== undefined || tree.get(path) !== undefined;
      placed.add(path);
      if (exact === undefined || !seen || !watches.hears(path, exact)) continue;
      const before = permissions === undefined ? [] : [permissions];
      changes.push({ path, exact, readable: [...before, ...this.#after(tree, path, placed)] });
    }
    return changes;
  }

  /** Who may know of a node that is there now. The C daemon puts the nodes in their places in the order in which they were
   * first named, tells of each at once, and so looks at a parent that comes later as it was. */
  #after(tree: Tree, path: string, placed: ReadonlySet<string>): readonly Permissions[] {
    const node = tree.get(path);
    if (node === undefined) return [];
    const parent = this.#touched.get(parentPath(path));
    if (parent === undefined || placed.has(parentPath(path))) return readableBy(tree, path);
    return parent.permissions === undefined
      ? [node.permissions]
      : [node.permissions, parent.permissions];
  }

  #ownsFewEnough(tree: Tree): boolean {
    const { domid, ownedNodes } = this.#bounds;
    const owns = (node: TreeNode | undefined): number =>
      node !== undefined && ownerOf(node.permissions) === domid ? 1 : 0;
    let growth = 0;
    for (const path of this.#changed.keys()) {
      growth += owns(this.#picture.get(path)) - owns(tree.get(path));
    }
    return growth <= 0 || tree.owned(domid) + growth <= ownedNodes;
  }

  /** Puts into the picture what was written. */
  #paint(): void {
    for (const [path, value] of this.#values) this.#picture.setValue(path, value);
    this.#values.clear();
  }

  #change(path: string): void {
    if (!this.#changed.has(path)) this.#changed.set(path, false);
  }

  /** False where it is one too many. */
  #touch(path: string): boolean {
    if (this.#touched.has(path)) return true;
    if (this.#touched.size >= this.#bounds.touchedNodes) {
      this.#spoilt = true;
      this.#refusal = "ENOSPC";
      return false;
    }
    const node = this.#picture.get(path);
    this.#touched.set(path, {
      generation: node?.generation,
      listingGeneration: node?.listingGeneration,
      listed: false,
      permissions: node?.permissions,
      exact: undefined,
    });
    return true;
  }
}

/** Who removed what was at `path`: whoever changed the children last of the node that is left above it. */
function removerOf(tree: Tree, path: string): number {
  let above = path;
  do {
    above = parentPath(above);
    const node = tree.get(above);
    if (node !== undefined) return node.listingAuthor;
  } while (above !== "/");
  return 0;
}
