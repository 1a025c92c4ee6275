/** The groups of `npm run bench`, in the order they are run. */

import { backend } from "./backend/backend.ts";
import { costs } from "./costs/costs.ts";
import type { Group } from "./harness/group.ts";
import { lab } from "./lab/lab.ts";
import { nbd } from "./nbd/nbd.ts";
import { pipeline } from "./pipeline/pipeline.ts";
import { xenstore } from "./xenstore/xenstore.ts";

export const groups: readonly Group[] = [pipeline, nbd, backend, costs, xenstore, lab];
