/**
 * How a domain reaches the others of its machine: their memory, and a way to wake them. Where they live (this thread,
 * another, another process) is known here and below only.
 *
 * Invariant: what `find` answers was alive a moment ago; a domain that died is let go of when it is looked for.
 */
import type { EventDescriptor } from "../../io/poller.ts";
import type { DomainMemory } from "./domain-memory.ts";

/** Another domain, alive when it was found. */
export interface Neighbour {
  /** Held by whoever found it; a caller that keeps it beyond its turn retains it. */
  readonly memory: DomainMemory;
  /** Makes the domain look at its pending bits, soon. Never throws, never blocks, whatever became of the domain. */
  wake(): void;
}

export interface Neighbours {
  /** undefined when there is no such domain, it is dead, or it cannot be reached from here. */
  find(domid: number): Neighbour | undefined;
}

/** A domain of another thread or process. Disposal lets go of its memory, and closes a bell that is ours. */
export class RemoteNeighbour implements Neighbour, Disposable {
  readonly memory: DomainMemory;
  readonly bell: EventDescriptor | undefined;
  readonly #ownsBell: boolean;

  /** Takes over one hold of the memory. Without a bell, the domain waits on its upcall word (Atomics). */
  constructor(memory: DomainMemory, bell: EventDescriptor | undefined, ownsBell: boolean) {
    this.memory = memory;
    this.bell = bell;
    this.#ownsBell = ownsBell;
  }

  wake(): void {
    const { upcall } = this.memory;
    // Who finds the word set knows that the domain was rung for and has not looked yet.
    if (Atomics.exchange(upcall, 0, 1) !== 0) return;
    if (this.bell !== undefined) this.bell.signal();
    else Atomics.notify(upcall, 0);
  }

  [Symbol.dispose](): void {
    if (this.#ownsBell) this.bell?.[Symbol.dispose]();
    this.memory.release();
  }
}

/** The neighbours of a thread: those it was told of, and those it can open. */
export class NeighbourMap implements Neighbours, Disposable {
  readonly #known = new Map<number, Neighbour>();
  readonly #open: (domid: number) => Neighbour | undefined;

  /** `open` gives a domain that is not known yet. */
  constructor(open: (domid: number) => Neighbour | undefined = () => undefined) {
    this.#open = open;
  }

  find(domid: number): Neighbour | undefined {
    const known = this.#known.get(domid);
    if (known?.memory.alive) return known;
    this.delete(domid);
    const opened = this.#open(domid);
    if (opened !== undefined) this.#known.set(domid, opened);
    return opened;
  }

  set(domid: number, neighbour: Neighbour): void {
    this.#known.set(domid, neighbour);
  }

  delete(domid: number): void {
    const known = this.#known.get(domid);
    this.#known.delete(domid);
    if (known instanceof RemoteNeighbour) known[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    for (const domid of this.#known.keys()) this.delete(domid);
  }
}
