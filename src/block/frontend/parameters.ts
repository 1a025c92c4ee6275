/**
 * The parameters of a frontend under the names that Linux's xen-blkfront module gives them, and ours beside them: what
 * text is parsed with and help is written from.
 */
import {
  dialects,
  type FrontendLimits,
  MAX_INDIRECT_SEGMENTS,
  MAX_QUEUES,
  MAX_RING_PAGE_ORDER,
} from "../features.ts";
import type { ParameterOf } from "../parameters.ts";

type FieldsOf<T> = {
  [K in keyof FrontendLimits]: FrontendLimits[K] extends T ? K : never;
}[keyof FrontendLimits];

export type FrontendParameter = ParameterOf<FieldsOf<number>, FieldsOf<boolean>, "dialect">;

export const frontendParameters: readonly FrontendParameter[] = [
  {
    name: "max_queues",
    field: "maxQueues",
    kind: "number",
    minimum: 1,
    maximum: MAX_QUEUES,
    help: "Rings to ask for.",
  },
  {
    name: "max_ring_page_order",
    field: "maxRingPageOrder",
    kind: "number",
    minimum: 0,
    maximum: MAX_RING_PAGE_ORDER,
    help: "A ring has at most 2 to this power pages.",
  },
  {
    name: "max_indirect_segments",
    field: "maxIndirectSegments",
    kind: "number",
    minimum: 0,
    maximum: MAX_INDIRECT_SEGMENTS,
    help: "Segments of an indirect request; 0 asks for none.",
  },
  {
    name: "feature_persistent",
    field: "persistent",
    kind: "switch",
    help: "Ask for persistent grants.",
  },
  {
    name: "trusted",
    field: "trusted",
    kind: "switch",
    help: "The backend may see what a page held before; 0 clears pages first.",
  },
  {
    name: "max_pool_pages",
    field: "maxPoolPages",
    kind: "number",
    minimum: 32,
    maximum: 1 << 18,
    help: "Pages for data in flight, of all rings together.",
  },
  {
    name: "dialect",
    field: "dialect",
    kind: "choice",
    choices: Object.keys(dialects),
    help: "What counts as a sector where the logical block is not 512 bytes.",
  },
];
