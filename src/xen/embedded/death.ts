/**
 * What a hypervisor does for the others when a domain dies (gnttab_release_mappings, evtchn_destroy): the marks of
 * its mappings come off their grant entries, and their ports that led to it are unbound again.
 */
import type { DomainMemory } from "./domain-memory.ts";
import {
  GTF_permit_access,
  GTF_reading,
  GTF_type_mask,
  GTF_writing,
  PORT_COUNT,
  PortState,
  portDomain,
  portState,
  portWord,
} from "./layout.ts";

/** The caller knows that `dead` runs no more. */
export function revoke(dead: number, memory: DomainMemory): void {
  const { grantWords, grantHalves, ports, shape } = memory;
  for (let reference = 0; reference < shape.grantEntries; reference++) {
    const word = Atomics.load(grantWords, reference * 2);
    const inUse = (word & (GTF_reading | GTF_writing)) !== 0;
    if (!inUse || word >>> 16 !== dead || (word & GTF_type_mask) !== GTF_permit_access) continue;
    Atomics.and(grantHalves, reference * 4, ~(GTF_reading | GTF_writing) & 0xffff);
  }
  for (let port = 1; port < PORT_COUNT; port++) {
    const word = Atomics.load(ports, port);
    if (portState(word) !== PortState.interdomain || portDomain(word) !== dead) continue;
    Atomics.compareExchange(ports, port, word, portWord(PortState.unbound, dead, 0));
  }
}
