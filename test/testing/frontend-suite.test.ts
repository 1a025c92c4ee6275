/** The published suite on our own frontend: by default, and with the least of limits. */
import { type DialectName, dialects } from "../../src/block/features.ts";
import { BlockFrontend, type FrontendLimits } from "../../src/block/index.ts";
import { frontendSuite, type OpenedFrontend, vbdPair } from "../../src/testing/index.ts";
import { systemClock } from "../../src/util/clock.ts";
import { openPorts } from "../model/open-ports.ts";

async function opened(limits: Partial<FrontendLimits> = {}): Promise<OpenedFrontend> {
  const pair = await vbdPair();
  const { backendDomain, frontendDomain, paths, reactor } = pair;
  return {
    backendDomain,
    frontendDomid: frontendDomain.id,
    reactor,
    paths,
    connect: () =>
      BlockFrontend.connect(frontendDomain, paths.frontend, { clock: systemClock, limits }),
    leftovers: () => frontendDomain.grants.counters.granted + openPorts(frontendDomain),
    [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose](),
  };
}

frontendSuite("our frontend", {
  // All that it can ask for.
  open: (dialect) => opened({ dialect, maxQueues: 4, maxRingPageOrder: 4 }),
  complete: true,
  dialects: Object.keys(dialects) as DialectName[],
});
frontendSuite("our frontend with the least of limits", {
  open: () =>
    opened({ maxRingPageOrder: 0, maxIndirectSegments: 0, persistent: false, maxPoolPages: 32 }),
});
