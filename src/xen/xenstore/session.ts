/**
 * What one client has open: its watches and transactions, with no thought of how it is connected.
 *
 * Invariant: each is counted for the client's domain while it is open, and given back exactly once (XSA-330, 484).
 */
import type { KnownDomain } from "./domains.ts";
import type { KeptRing } from "./kept-ring.ts";
import type { DomainLimits } from "./limits.ts";
import { isPrivileged } from "./permissions.ts";
import type { XenStoreState } from "./state.ts";
import { Transaction, type TransactionBounds } from "./transaction.ts";
import type { View } from "./view.ts";
import type { Watch, Watcher } from "./watches.ts";

/** Where a session's news go. */
export interface SessionOwner {
  /** An event of one of its watches. */
  deliver(watch: Watch, path: string): void;
  /** The client's domain died. */
  ended(): void;
}

export class Session implements Watcher {
  readonly state: XenStoreState;
  readonly subject: KnownDomain;
  /** Where its watches outlive the daemon. */
  kept: KeptRing | undefined;
  readonly #owner: SessionOwner;
  readonly #watches = new Map<string, Watch>();
  readonly #transactions = new Map<number, Transaction>();
  readonly #bounds: TransactionBounds;
  #nextTransaction = 1;

  constructor(state: XenStoreState, domid: number, owner: SessionOwner) {
    this.state = state;
    this.subject = state.domains.get(domid);
    this.#owner = owner;
    this.#bounds = new SessionBounds(this.subject);
    state.sessions.add(this);
  }

  deliver(watch: Watch, path: string): void {
    this.#owner.deliver(watch, path);
  }

  /** undefined for an id that is not open. */
  view(transactionId: number): View | undefined {
    return transactionId === 0 ? this.state.view : this.#transactions.get(transactionId);
  }

  transaction(id: number): Transaction | undefined {
    return this.#transactions.get(id);
  }

  get watches(): Iterable<Watch> {
    return this.#watches.values();
  }

  get transactions(): readonly number[] {
    return [...this.#transactions.keys()];
  }

  openTransaction(): number {
    const transaction = this.#newTransaction();
    while (this.#nextTransaction === 0 || this.#transactions.has(this.#nextTransaction)) {
      this.#nextTransaction = (this.#nextTransaction + 1) >>> 0;
    }
    const id = this.#nextTransaction;
    this.#nextTransaction = (id + 1) >>> 0;
    this.#transactions.set(id, transaction);
    this.subject.transactions++;
    return id;
  }

  /** One that a daemon before us had open. What it changed is gone, so it can only end with EAGAIN. */
  restoreTransaction(id: number): void {
    const transaction = this.#newTransaction();
    transaction.lose();
    this.#transactions.set(id, transaction);
    this.subject.transactions++;
  }

  #newTransaction(): Transaction {
    return new Transaction(this.state.tree, this.#bounds);
  }

  dropTransaction(id: number): void {
    if (this.#transactions.delete(id)) this.subject.transactions--;
  }

  hasWatch(path: string, token: string): boolean {
    return this.#watches.has(watchKey(path, token));
  }

  addWatch(watch: Omit<Watch, "watcher" | "number">): Watch {
    const added = this.state.watches.add({ ...watch, watcher: this });
    this.#watches.set(watchKey(watch.path, watch.token), added);
    this.subject.watches++;
    this.subject.watchBytes += watchBytes(watch);
    this.kept?.watched(added);
    return added;
  }

  /** False where there is no such watch. */
  removeWatch(path: string, token: string): boolean {
    const key = watchKey(path, token);
    const watch = this.#watches.get(key);
    if (watch === undefined) return false;
    this.#watches.delete(key);
    this.state.watches.remove(watch);
    this.subject.watches--;
    this.subject.watchBytes -= watchBytes(watch);
    this.kept?.unwatched(path, token);
    return true;
  }

  /** XS_RESET_WATCHES: ends all watches and transactions. */
  reset(): void {
    for (const watch of this.#watches.values()) this.removeWatch(watch.path, watch.token);
    for (const id of this.#transactions.keys()) this.dropTransaction(id);
  }

  forgetDomain(domid: number): void {
    for (const transaction of this.#transactions.values()) transaction.forgetDomain(domid);
  }

  /** Idempotent. The owner is told only where it was not the owner that ended it. */
  end(told = false): void {
    if (!this.state.sessions.delete(this)) return;
    this.reset();
    if (!told) this.#owner.ended();
  }
}

/** Those of a domain, which may be set while its transactions are open. */
class SessionBounds implements TransactionBounds {
  readonly #subject: KnownDomain;

  constructor(subject: KnownDomain) {
    this.#subject = subject;
  }

  get domid(): number {
    return this.#subject.domid;
  }

  get touchedNodes(): number {
    return this.#bound("transactionNodes");
  }

  get ownedNodes(): number {
    return this.#bound("nodes");
  }

  #bound(name: keyof DomainLimits): number {
    return isPrivileged(this.#subject) ? Number.POSITIVE_INFINITY : this.#subject.limit(name);
  }
}

/** No path has a NUL. */
function watchKey(path: string, token: string): string {
  return `${path}\0${token}`;
}

/** What a watch counts for in the memory of its domain. */
export function watchBytes({ path, token }: { path: string; token: string }): number {
  return path.length + token.length;
}
