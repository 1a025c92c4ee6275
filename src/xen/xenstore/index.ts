/** The xenstore: its daemon, its client, and what lies between them. */
export * from "./client.ts";
export * from "./daemon.ts";
export * from "./limits.ts";
export * from "./message-port-transport.ts";
export * from "./ring-guest.ts";
export { openDomainRing } from "./ring-service.ts";
export type { XenStoreRing } from "./ring-transport.ts";
export * from "./socket-path.ts";
export * from "./transport.ts";
