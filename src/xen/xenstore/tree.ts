/**
 * The tree of the xenstore, in memory, copied on write: a snapshot costs nothing, and the first change of a node that
 * a snapshot shares copies that node and those above it.
 *
 * Invariant: a node whose `holder` is not the tree's own may be reached from another tree and is never changed: it is as
 * it was since before that tree's last snapshot. The
 * generation of a node changes exactly when its value or its permissions do, that of its listing when a child comes or
 * goes; none is used twice. Nothing here recurses (XSA-418).
 */
import { invariant } from "../../util/assert.ts";
import { Children } from "./children.ts";
import {
  baseName,
  childPath,
  INTRODUCE_DOMAIN,
  isTopPath,
  isWithin,
  parentPath,
  pathSegments,
  RELEASE_DOMAIN,
} from "./paths.ts";
import { ownerOf, type Permissions, PRIVATE } from "./permissions.ts";

export interface TreeNode {
  readonly value: Uint8Array;
  readonly permissions: Permissions;
  readonly generation: number;
  readonly listingGeneration: number;
  /** On whose behalf each last changed. */
  readonly author: number;
  readonly listingAuthor: number;
  /** In the order in which they were made. */
  readonly children: Pick<Children<TreeNode>, "get" | "has" | "keys" | typeof Symbol.iterator>;
  /** Bytes of the children's names with a NUL each, as DIRECTORY answers them. */
  readonly childrenBytes: number;
}

export interface PlacedNode {
  readonly path: string;
  readonly node: TreeNode;
}

const EMPTY = new Uint8Array(0);
/** What the header of a node and each of its permissions count for, as in the C daemon. */
const NODE_HEADER_BYTES = 24;
const PERMISSION_BYTES = 8;
/** Nodes that a tree remembers by their path: those of some hundred domains. */
const REMEMBERED_NODES = 16384;

/** Bytes of a node, without its path. */
export function nodeBytes(node: Pick<TreeNode, "value" | "permissions" | "childrenBytes">): number {
  const { value, permissions, childrenBytes } = node;
  return NODE_HEADER_BYTES + permissions.length * PERMISSION_BYTES + value.length + childrenBytes;
}

/** What one domain owns of a tree. */
interface Owned {
  readonly nodes: number;
  readonly bytes: number;
}

class Node implements TreeNode {
  readonly children: Children<Node>;
  childrenBytes = 0;
  generation = 0;
  listingGeneration = 0;
  author = 0;
  listingAuthor = 0;
  value: Uint8Array = EMPTY;
  permissions: Permissions;
  readonly holder: number;

  constructor(holder: number, permissions: Permissions, children = new Children<Node>()) {
    this.holder = holder;
    this.permissions = permissions;
    this.children = children;
  }

  copyFor(holder: number): Node {
    const copy = new Node(holder, this.permissions, this.children.copy());
    copy.childrenBytes = this.childrenBytes;
    copy.generation = this.generation;
    copy.listingGeneration = this.listingGeneration;
    copy.author = this.author;
    copy.listingAuthor = this.listingAuthor;
    copy.value = this.value;
    return copy;
  }
}

/** Hears of every change of a tree, before it is made. */
export interface TreeJournal {
  create(path: string, permissions: Permissions, value: Uint8Array): void;
  setValue(path: string, value: Uint8Array): void;
  setPermissions(path: string, permissions: Permissions): void;
  remove(path: string): void;
}

/** Numbers of those who hold nodes: a later one is larger. */
let holders = 0;

export class Tree {
  /** The domain on whose behalf changes are made from now on. */
  author = 0;
  /** Snapshots have none. */
  journal: TreeJournal | undefined;
  /** Above "/", so that special nodes are nodes like others. */
  #top: Node;
  #holder: number;
  /** Its first holder: what it changed has this one or a later one. */
  readonly #first: number;
  /** Of a snapshot: whose it is. */
  readonly #origin: Tree | undefined;
  #generation: number;
  readonly #owned = new Map<number, Owned>();
  /** Nodes of this tree by their path, so that one that is asked for often is found in one step. */
  readonly #found = new Map<string, Node>();
  /** A path at which there is nothing, hence nothing below it: whoever asks for a node that is missing asks for those
   * above it next, and a guest may name a thousand. */
  #missing: string | undefined;

  private constructor(top: Node, generation: number, origin?: Tree) {
    this.#top = top;
    this.#first = ++holders;
    this.#holder = this.#first;
    this.#generation = generation;
    this.#origin = origin;
  }

  /** "/" and the two special nodes, all of them domain 0's alone. */
  static empty(): Tree {
    const tree = new Tree(new Node(0, PRIVATE), 0);
    for (const path of ["/", INTRODUCE_DOMAIN, RELEASE_DOMAIN]) tree.create(path, PRIVATE);
    return tree;
  }

  /** A tree of its own that begins as this one is now. */
  snapshot(): Tree {
    const snapshot = new Tree(this.#top, this.#generation, this);
    this.#holder = ++holders;
    return snapshot;
  }

  /** The last that was used. */
  get generation(): number {
    return this.#generation;
  }

  /** Uses none up to `generation` from now on. */
  skipGenerations(generation: number): void {
    this.#generation = Math.max(this.#generation, generation);
  }

  get(path: string): TreeNode | undefined {
    const found = this.#found.get(path);
    if (found !== undefined) return found;
    if (this.#missing !== undefined && isWithin(path, this.#missing)) return undefined;
    const same = this.#asInOrigin(path);
    if (same !== undefined) return same;
    let node: Node | undefined = this.#top;
    let end = -1;
    for (const name of pathSegments(path)) {
      end += 1 + name.length;
      node = node.children.get(name);
      if (node === undefined) {
        this.#missing = path.slice(0, end);
        return undefined;
      }
    }
    this.#remember(path, node);
    return node;
  }

  /** The node, if nothing has changed here, and its tree remembers it and has not changed it since. */
  #asInOrigin(path: string): Node | undefined {
    if (this.#origin === undefined || this.#top.holder >= this.#first) return undefined;
    const node = this.#origin.#found.get(path);
    return node !== undefined && node.holder < this.#first ? node : undefined;
  }

  /** Whether `path` was looked up before and is there. Unlike the others, it takes any text. */
  remembers(path: string): boolean {
    return this.#found.has(path) || this.#asInOrigin(path) !== undefined;
  }

  /** Nodes that `domid` owns; of a snapshot, how many more than when it began, which may be less than none. */
  owned(domid: number): number {
    return this.#owned.get(domid)?.nodes ?? 0;
  }

  /** Bytes of the nodes that `domid` owns, with their paths; of a snapshot, how many more. */
  ownedBytes(domid: number): number {
    return this.#owned.get(domid)?.bytes ?? 0;
  }

  /** Makes a node; its parent must be there and not have it. */
  create(path: string, permissions: Permissions, value: Uint8Array = EMPTY): void {
    this.journal?.create(path, permissions, value);
    const parent = this.#ownAbove(path);
    const name = baseName(path);
    invariant(!parent.children.has(name), `xenstore node ${path} is made twice`);
    this.#missing = undefined;
    const node = new Node(this.#holder, permissions);
    node.value = value;
    node.listingAuthor = this.author;
    this.#stamp(node);
    parent.children.set(name, node);
    parent.childrenBytes += name.length + 1;
    this.#stampListing(parent);
    this.#count(ownerOf(permissions), 1, path.length + nodeBytes(node));
    this.#countListing(parent, name.length + 1);
  }

  setValue(path: string, value: Uint8Array): void {
    this.journal?.setValue(path, value);
    const node = this.#own(path);
    this.#count(ownerOf(node.permissions), 0, value.length - node.value.length);
    node.value = value;
    this.#stamp(node);
  }

  setPermissions(path: string, permissions: Permissions): void {
    this.journal?.setPermissions(path, permissions);
    const node = this.#own(path);
    this.#count(ownerOf(node.permissions), -1, -path.length - nodeBytes(node));
    node.permissions = permissions;
    this.#count(ownerOf(permissions), 1, path.length + nodeBytes(node));
    this.#stamp(node);
  }

  /** Removes a node other than "/" with everything below it, which it returns, children first. */
  remove(path: string): PlacedNode[] {
    this.journal?.remove(path);
    const removed = this.below(path);
    const parent = this.#ownAbove(path);
    const name = baseName(path);
    parent.children.delete(name);
    parent.childrenBytes -= name.length + 1;
    this.#stampListing(parent);
    this.#countListing(parent, -name.length - 1);
    for (const { path: below, node } of removed) {
      this.#found.delete(below);
      this.#count(ownerOf(node.permissions), -1, -below.length - nodeBytes(node));
    }
    return removed;
  }

  /** A node and everything below it, children before their parents. */
  below(path: string): PlacedNode[] {
    // Parents were found before their children, and siblings from the last to the first.
    return this.#placed(path, (children) => children).reverse();
  }

  /** A node and everything below it, parents before their children. */
  from(path: string): PlacedNode[] {
    return this.#placed(path, (children) => children.reverse());
  }

  /** Parents before children, which are looked at from the last to the first that `order` gives. */
  #placed(path: string, order: (children: PlacedNode[]) => PlacedNode[]): PlacedNode[] {
    const node = this.get(path);
    if (node === undefined) return [];
    const found: PlacedNode[] = [];
    const waiting: PlacedNode[] = [{ path, node }];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const { path: above } = next;
      found.push(next);
      const children = Array.from(next.node.children, ([name, child]) => ({
        path: childPath(above, name),
        node: child,
      }));
      for (const child of order(children)) waiting.push(child);
    }
    return found;
  }

  /** The node at `path`, held by this tree alone, as are those above it. */
  #own(path: string): Node {
    const found = this.#found.get(path);
    if (found?.holder === this.#holder) return found;
    let node = this.#ownTop();
    let at = "";
    for (const name of pathSegments(path)) {
      at = at === "" ? name || "/" : childPath(at, name);
      let child = node.children.get(name);
      invariant(child !== undefined, "a xenstore node that changes is there");
      if (child.holder !== this.#holder) {
        child = child.copyFor(this.#holder);
        node.children.set(name, child);
        if (this.#found.has(at)) this.#found.set(at, child);
      }
      node = child;
    }
    this.#remember(path, node);
    return node;
  }

  /** What `path` is a child of, held by this tree alone. */
  #ownAbove(path: string): Node {
    return isTopPath(path) ? this.#ownTop() : this.#own(parentPath(path));
  }

  #ownTop(): Node {
    if (this.#top.holder !== this.#holder) this.#top = this.#top.copyFor(this.#holder);
    return this.#top;
  }

  #remember(path: string, node: Node): void {
    if (this.#found.size >= REMEMBERED_NODES) this.#found.clear();
    this.#found.set(path, node);
  }

  #stamp(node: Node): void {
    node.generation = ++this.#generation;
    node.author = this.author;
  }

  #stampListing(node: Node): void {
    node.listingGeneration = ++this.#generation;
    node.listingAuthor = this.author;
  }

  /** The list of what is at the very top is nobody's. */
  #countListing(parent: Node, bytes: number): void {
    if (parent !== this.#top) this.#count(ownerOf(parent.permissions), 0, bytes);
  }

  #count(domid: number, nodes: number, bytes: number): void {
    if (nodes === 0 && bytes === 0) return;
    const owned = { nodes: this.owned(domid) + nodes, bytes: this.ownedBytes(domid) + bytes };
    if (owned.nodes === 0 && owned.bytes === 0) this.#owned.delete(domid);
    else this.#owned.set(domid, owned);
  }
}
