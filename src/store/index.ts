/** Disks: the storage port, what opens them, and what makes one. */
export { threadReactor } from "../io/reactor.ts";
export * from "./block-store.ts";
export {
  type AccessOptions,
  type ChangeOptions,
  Disk,
  type RangeOptions,
  type WriteZeroesOptions,
} from "./disk.ts";
export { emulate } from "./emulate.ts";
export { Errno, type ErrnoName, errnoName, errnoOf, StoreError } from "./errors.ts";
export type { RequestEvent } from "./filters/log.ts";
export { ForwardingStore } from "./forwarding-store.ts";
export { type Parameter, type ParameterTable, parseParameters } from "./parameters.ts";
export { type PromiseStoreOptions, promiseStore } from "./promise-store.ts";
export {
  type AnyDriver,
  type AnyFilter,
  drivers,
  filters,
  type OpenStoreOptions,
  openStore,
  parseDisk,
  registerDriver,
  registerFilter,
} from "./registry.ts";
