/** Two domains (or more) on one thread without a machine: what the tests of the tables need. */
import { MemoryRegion } from "../../../src/io/memory.ts";
import { Reactor } from "../../../src/io/reactor.ts";
import { PAGE_SIZE, type XenStore } from "../../../src/xen/domain.ts";
import { EmbeddedDomain } from "../../../src/xen/embedded/domain.ts";
import { DomainMemory } from "../../../src/xen/embedded/domain-memory.ts";
import { type DomainLimits, shapeOf } from "../../../src/xen/embedded/layout.ts";
import type { Neighbour } from "../../../src/xen/embedded/neighbours.ts";

const noStore = { [Symbol.asyncDispose]: () => Promise.resolve() } as unknown as XenStore;

export class Village {
  readonly reactor: Reactor = new Reactor();
  readonly #houses = new Map<number, Neighbour>();
  /** Regions that were unmapped. */
  readonly unmapped: number[] = [];

  find(domid: number): Neighbour | undefined {
    const found = this.#houses.get(domid);
    return found?.memory.alive ? found : undefined;
  }

  domain(domid: number, pages = 64, limits: DomainLimits = { grantEntries: 64 }): EmbeddedDomain {
    const bytes = new Uint8Array(new SharedArrayBuffer(pages * PAGE_SIZE));
    const region = new MemoryRegion(bytes, 0, () => this.unmapped.push(domid));
    const memory = DomainMemory.format(region, shapeOf(domid, pages, limits));
    const domain = new EmbeddedDomain(memory, this, noStore, this.reactor);
    this.#houses.set(domid, domain);
    return domain;
  }
}
