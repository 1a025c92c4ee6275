/**
 * A domain without Xen, on the thread that it lives on: the two tables over its shared memory, its xenstore, and the
 * one place where it is woken.
 *
 * Whoever wakes it, by `lookAgain` on this thread or by a bell from elsewhere (bell.ts), it looks at its pending bits
 * from the reactor, once for any number of wakes.
 */
import type { Kickable, Reactor } from "../../io/reactor.ts";
import type { Domain, XenStore } from "../domain.ts";
import type { DomainMemory } from "./domain-memory.ts";
import { EmbeddedEventChannels } from "./event-channels.ts";
import { EmbeddedGrantTable } from "./grant-table.ts";
import type { Neighbour, Neighbours } from "./neighbours.ts";
import { openStoreRing } from "./store-ring.ts";

export class EmbeddedDomain implements Domain, Neighbour, Kickable {
  readonly id: number;
  readonly reactor: Reactor;
  readonly store: XenStore;
  readonly grants: EmbeddedGrantTable;
  readonly events: EmbeddedEventChannels;
  readonly memory: DomainMemory;
  /** What ends with the domain: its bell, its place in the machine. */
  readonly #ends: AsyncDisposableStack;
  #queued = false;
  #paused = false;
  /** As `#ends.disposed`, which takes longer to be asked than an event takes. */
  #ended = false;

  /** Takes over one hold of `memory`, and `ends`, which are disposed last. Without a `store`, the domain has that of the
   * ring in its memory. */
  constructor(
    memory: DomainMemory,
    neighbours: Neighbours,
    store: XenStore | undefined,
    reactor: Reactor,
    ends: AsyncDisposableStack = new AsyncDisposableStack(),
  ) {
    this.#ends = ends;
    const lookAgain = (): void => this.lookAgain();
    this.id = memory.shape.domid;
    this.memory = memory;
    this.reactor = reactor;
    this.grants = new EmbeddedGrantTable(memory, neighbours, lookAgain);
    this.events = new EmbeddedEventChannels(memory, neighbours, lookAgain);
    this.store = store ?? openStoreRing(memory, this.events);
    this.#ends.defer(() => memory.release());
    this.#ends.use(this.store);
    this.#ends.defer(() => {
      this.events[Symbol.dispose]();
      this.grants[Symbol.dispose]();
      memory.markDead();
    });
  }

  /** `end` runs when the domain ends, before its ports are closed. */
  onEnd(end: Disposable): void {
    this.#ends.use(end);
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** The domain does not run: events stay pending until `unpause`. */
  pause(): void {
    this.#paused = true;
  }

  unpause(): void {
    this.#paused = false;
    this.lookAgain();
  }

  /** Called from this thread: the domain looks at its pending bits in the reactor's next round. */
  lookAgain(): void {
    if (this.#queued || this.#ended) return;
    this.#queued = true;
    this.reactor.dirty(this);
    this.reactor.soon();
  }

  wake(): void {
    this.lookAgain();
  }

  /** The bell rang: looks at the pending bits now. The word is cleared first, so that who rings from here on is
   * heard again. */
  rung(): void {
    if (this.#ended) return;
    Atomics.store(this.memory.upcall, 0, 0);
    this.lookAgain();
    this.reactor.settle();
  }

  kick(): void {
    this.#queued = false;
    if (this.#ended || this.#paused) return;
    this.events.deliver();
    this.grants.serveWaiters();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    await this.#ends.disposeAsync();
  }
}
