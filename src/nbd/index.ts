/** NBD both ways: a server of block stores, a client that is one, and the URIs of either. */

export { NbdStore, type NbdStoreOptions, openNbdStore } from "./client.ts";
export type { BlockSizes, NbdExport } from "./export.ts";
export {
  type NbdListenOptions,
  NbdServer,
  type NbdServerCounters,
  type NbdServerOptions,
} from "./server.ts";
export type { TransportKind } from "./transports.ts";
export { formatNbdUri, type NbdAddress, type NbdUri, parseNbdUri } from "./uri.ts";
