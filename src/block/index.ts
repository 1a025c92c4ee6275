/** The split driver: a backend makes a vbd of any disk, a frontend makes a disk of any vbd. */
export {
  type BackendEvent,
  BlockBackend,
  type BlockBackendOptions,
} from "./backend/backend.ts";
export type { QueueCounters } from "./backend/queue.ts";
export {
  type BackendLimits,
  defaultBackendLimits,
  defaultFrontendLimits,
  type FrontendLimits,
  type Negotiated,
} from "./features.ts";
export { BlockFrontend, type BlockFrontendOptions } from "./frontend/frontend.ts";
export type { FrontendCounters } from "./frontend/queue.ts";
