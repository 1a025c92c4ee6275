/** The xenstore: its daemon, its client, and what lies between them. */
export * from "./client.ts";
export * from "./daemon.ts";
export * from "./limits.ts";
export * from "./message-port-transport.ts";
export * from "./socket-path.ts";
export * from "./transport.ts";
