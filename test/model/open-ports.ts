/** Ports of an embedded domain that are not closed, counted in its own table. */
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedDomain } from "../../src/xen/embedded/domain.ts";
import { portState } from "../../src/xen/embedded/layout.ts";

export function openPorts(domain: Domain): number {
  if (!(domain instanceof EmbeddedDomain)) throw new TypeError("not a domain of ours");
  return domain.memory.ports.reduce((count, word) => count + (portState(word) === 0 ? 0 : 1), 0);
}
