/** What the comparison remembers of an open transaction: what it looked at, and what happened there outside since. */
import { parentPath } from "../../../../src/xen/xenstore/paths.ts";
import { absolute, areaOf } from "./areas.ts";
import type { Operation } from "./operations.ts";
import type { Shadow } from "./shadow.ts";

export class OpenTransaction {
  readonly id: number;
  /** Tops of what it may have changed. */
  readonly areas: Set<string> = new Set();
  /** An answer within it differed, as intended. */
  tainted = false;
  readonly #domid: number;
  readonly #shadow: Shadow;
  readonly #begun: number;
  /** What both daemons did in it. */
  readonly #done: Operation[] = [];
  readonly #looked = new Set<string>();
  readonly #removed = new Set<string>();
  /** It has looked at something that had changed since it began. */
  #strayed = false;
  /** What it could not remove for the limit of its nodes. */
  readonly #halved: string[] = [];
  /** What an operation was about that was not answered alike. */
  readonly #unlike: string[] = [];

  constructor(id: number, domid: number, shadow: Shadow) {
    this.id = id;
    this.#domid = domid;
    this.#shadow = shadow;
    this.#begun = shadow.now;
  }

  /** Before its answers are compared. */
  look(operation: Operation): void {
    if (operation.path === "") return;
    const path = absolute(operation.path, this.#domid);
    this.areas.add(areaOf(path));
    for (const each of lineage(path)) this.#looked.add(each);
    if (operation.name === "RM") this.#removed.add(path);
    this.#strayed ||= this.disturbs(operation);
  }

  /** After both answered alike: with nothing, or an error. */
  did(operation: Operation, error: string | undefined): void {
    if (error === undefined) this.#done.push(operation);
    if (error === "EIO") this.#halved.push(absolute(operation.path, this.#domid));
  }

  /** After they did not, as intended. */
  differed({ name, path: written }: Operation): void {
    this.tainted = true;
    if (written === "") return;
    const path = absolute(written, this.#domid);
    // What makes a node makes those above it.
    const makes = name === "WRITE" || name === "MKDIR";
    this.#unlike.push((makes ? lineage(path).at(-2) : undefined) ?? path);
  }

  /** Whether the operation is about what an RM may have removed in part. */
  halved(operation: Operation): boolean {
    return this.#isAbout(operation, this.#halved);
  }

  #isAbout({ name, path: written }: Operation, tops: readonly string[]): boolean {
    const path = absolute(written, this.#domid);
    const sees = name === "RM" || name.startsWith("DIRECTORY");
    return tops.some((top) => lies(path, top) || (sees && lies(top, path)));
  }

  /** Whether somebody else changed what the operation is about since the transaction began, or an earlier one that was
   * not answered alike: the node, one above it, and those below where it lists or removes them; for the end, any node
   * that was looked at, and its children. */
  disturbs(operation: Operation): boolean {
    const { name, path: written } = operation;
    const shadow = this.#shadow;
    const begun = this.#begun;
    if (name === "TRANSACTION_END") {
      const looked = [...this.#looked].some(
        (path) => shadow.changed(path, begun) || shadow.childChanged(path, begun),
      );
      return looked || [...this.#removed].some((path) => shadow.changedBelow(path, begun));
    }
    if (written === "") return false;
    if (this.#isAbout(operation, this.#unlike)) return true;
    const path = absolute(written, this.#domid);
    if (lineage(path).some((each) => shadow.changed(each, begun))) return true;
    if (name === "RM") return shadow.changedBelow(path, begun);
    return name.startsWith("DIRECTORY") && shadow.childChanged(path, begun);
  }

  /** Whether it can meet other limits than it would have when it began: its counts are others once it has strayed, was
   * not answered alike or removed in part, or the node or one above it is larger or smaller. */
  outgrows({ path: written }: Operation): boolean {
    const begun = this.#begun;
    if (this.#strayed || this.tainted || this.#halved.length > 0) return true;
    const path = absolute(written, this.#domid);
    return lineage(path).some((each) => this.#shadow.childChanged(each, begun));
  }

  /** Whether a domain has `limit` nodes when the transaction ends with those that it may have made. */
  fills(limit: number): boolean {
    const missing = new Set<string>();
    for (const { name, path } of this.#done) {
      if (name !== "WRITE" && name !== "MKDIR") continue;
      for (const each of lineage(absolute(path, this.#domid))) {
        if (!this.#shadow.has(each)) missing.add(each);
      }
    }
    return this.#shadow.counts.some((count) => count + missing.size >= limit);
  }

  /** It ended well: what it did is there for all. */
  commit(): void {
    for (const operation of this.#done) this.#shadow.operate(operation, this.#domid);
  }
}

/** Whether `path` is `top` or below it. */
function lies(path: string, top: string): boolean {
  return path === top || path.startsWith(`${top}/`);
}

/** A path and those above it, up to the top of its area. */
function lineage(path: string): string[] {
  const top = areaOf(path);
  const found = [path];
  for (let above = path; above !== top && above !== "/"; ) {
    above = parentPath(above);
    found.push(above);
  }
  return found;
}
