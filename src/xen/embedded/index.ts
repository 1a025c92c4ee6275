/** A machine without Xen: see machine.ts, and docs/process-link.md for what its domains share. */
export type { EmbeddedDomain } from "./domain.ts";
export type { PortStatus } from "./event-channels.ts";
export { joinMachine } from "./join.ts";
export {
  DEFAULT_GRANT_ENTRIES,
  DEFAULT_MEMORY_PAGES,
  type DomainOptions,
  EmbeddedMachine,
  type MachineOptions,
  ShutdownReason,
} from "./machine.ts";
export type { DomainTicket, ProcessTicket, WorkerTicket } from "./ticket.ts";
