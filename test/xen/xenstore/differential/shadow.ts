/**
 * What is there outside of transactions, and when each path changed last: so that a difference between the daemons
 * that only a change outside explains is admitted only where there was one.
 *
 * Invariant: it has exactly the nodes of the trees (`Comparison` looks), each with its owner.
 */
import { childPath, parentPath } from "../../../../src/xen/xenstore/paths.ts";
import { absolute } from "./areas.ts";
import type { Operation } from "./operations.ts";

export class Shadow {
  /** The owner of each node. */
  readonly #owners = new Map<string, number>(
    ["/", "/tool", "/tool/xenstored"].map((path) => [path, 0]),
  );
  #clock = 0;
  /** When the node came, went, or got another value or other permissions. */
  readonly #changes = new Map<string, number>();
  /** When that happened to one of its children, and to anything below it. */
  readonly #childChanges = new Map<string, number>();
  readonly #changesBelow = new Map<string, number>();

  /** Counts changes. */
  get now(): number {
    return this.#clock;
  }

  /** Where nodes are. */
  get paths(): Iterable<string> {
    return this.#owners.keys();
  }

  has(path: string): boolean {
    return this.#owners.has(path);
  }

  /** How many nodes each domain owns but domain 0. */
  get counts(): number[] {
    const counts = new Map<number, number>();
    for (const owner of this.#owners.values()) counts.set(owner, (counts.get(owner) ?? 0) + 1);
    counts.delete(0);
    return [...counts.values()];
  }

  children(path: string): string[] {
    return [...this.#owners.keys()].filter((each) => each !== "/" && parentPath(each) === path);
  }

  /** An operation of `domid` that succeeded. */
  operate({ name, path: written, payload }: Operation, domid: number): void {
    const path = absolute(written, domid);
    if (path.startsWith("@")) return;
    if (name === "WRITE" || name === "MKDIR") this.#make(path, domid, name === "WRITE");
    else if (name === "RM") this.remove(path);
    else if (name === "SET_PERMS") this.#give(path, Number(payload.split("\0")[1]?.slice(1)));
  }

  remove(path: string): void {
    for (const each of this.#owners.keys()) {
      if (each !== path && !each.startsWith(`${path}/`)) continue;
      this.#owners.delete(each);
      this.#change(each);
    }
  }

  /** A domain died: its nodes go, with all below them. */
  forget(domid: number): void {
    for (const [path, owner] of this.#owners) if (owner === domid) this.remove(path);
  }

  /** Whether the node itself changed after `moment`. */
  changed(path: string, moment: number): boolean {
    return (this.#changes.get(path) ?? 0) > moment;
  }

  childChanged(path: string, moment: number): boolean {
    return (this.#childChanges.get(path) ?? 0) > moment;
  }

  changedBelow(path: string, moment: number): boolean {
    return (this.#changesBelow.get(path) ?? 0) > moment;
  }

  #make(path: string, domid: number, changes: boolean): void {
    if (this.#owners.has(path)) {
      if (changes) this.#change(path);
      return;
    }
    let above = "/";
    for (const name of path.slice(1).split("/")) {
      const each = childPath(above, name);
      if (!this.#owners.has(each)) {
        const owner = domid === 0 ? (this.#owners.get(above) as number) : domid;
        this.#owners.set(each, owner);
        this.#change(each);
      }
      above = each;
    }
  }

  #give(path: string, owner: number): void {
    this.#owners.set(path, owner);
    this.#change(path);
  }

  #change(path: string): void {
    this.#changes.set(path, ++this.#clock);
    this.#childChanges.set(parentPath(path), this.#clock);
    for (let above = path; above !== "/"; ) {
      above = parentPath(above);
      this.#changesBelow.set(above, this.#clock);
    }
  }
}
