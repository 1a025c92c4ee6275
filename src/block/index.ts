/** The split driver: a backend makes a vbd of any disk, a frontend makes a disk of any vbd. */
export {
  type BackendCounters,
  type BackendEvent,
  BlockBackend,
  type BlockBackendOptions,
} from "./backend/backend.ts";
export type { BrokenRequestMessage } from "./backend/broken-rules.ts";
export { type LinuxStatistics, linuxStatistics, type QueueCounters } from "./backend/counters.ts";
export {
  type BackendParameter,
  backendParameters,
  parseBackendParameters,
} from "./backend/parameters.ts";
export type { RingJournals } from "./backend/ring-journal.ts";
export {
  type BackendLimits,
  defaultBackendLimits,
  defaultFrontendLimits,
  dialects,
  type FrontendLimits,
  type Negotiated,
} from "./features.ts";
export { MAX_REQUEST_BYTES } from "./frontend/connection.ts";
export type { FrontendCounters } from "./frontend/counters.ts";
export type { FrontendFigures } from "./frontend/figures.ts";
export type { FreezeReason } from "./frontend/freeze.ts";
export { BlockFrontend } from "./frontend/frontend.ts";
export type {
  BlockFrontendOptions,
  FrontendDevice,
  FrontendState,
} from "./frontend/options.ts";
export type { OutstandingRequest } from "./frontend/outstanding.ts";
export { describeRange } from "./parameters.ts";
