/**
 * How a domain reaches the others of its machine: their memory, and a way to wake them. Where they live (this thread,
 * another, another process) is known below this interface only.
 */
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
