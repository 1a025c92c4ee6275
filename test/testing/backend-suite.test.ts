/** The published suite on our own backend: writable, read-only, and with little to offer. */
import { type DialectName, dialects } from "../../src/block/features.ts";
import { BlockBackend, type BlockBackendOptions } from "../../src/block/index.ts";
import { openStore } from "../../src/store/registry.ts";
import {
  backendSuite,
  type OpenedBackend,
  ShufflingStore,
  vbdPair,
} from "../../src/testing/index.ts";

/** Shorter than it takes to notice in a suite, longer than a round of the reactor. */
const SHUFFLE_MILLISECONDS = 2;

async function opened(
  options: BlockBackendOptions & { readonly shuffled?: boolean } = {},
): Promise<OpenedBackend> {
  await using undo = new AsyncDisposableStack();
  const pair = undo.use(await vbdPair({ readOnly: options.readOnly === true }));
  const { backendDomain, frontendDomain, paths, reactor } = pair;
  const spec = { driver: "memory", parameters: { size: "2M" }, filters: [] };
  const plain = await openStore(spec, { reactor });
  const seed = Math.floor(Math.random() * 2 ** 31);
  const store =
    options.shuffled === true
      ? new ShufflingStore(plain, reactor, seed, SHUFFLE_MILLISECONDS)
      : plain;
  undo.use(await BlockBackend.open(backendDomain, paths.backend, store, options));
  const ends = undo.move();
  return {
    frontendDomain,
    backendDomid: backendDomain.id,
    paths,
    resize: (size) => store.resize(size),
    takeOffline: () => pair.takeOffline(),
    mappedPages: () => backendDomain.grants.counters.mapped,
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

backendSuite("our backend", {
  open: () => opened(),
  complete: true,
  largeSectors: {
    dialects: Object.keys(dialects) as DialectName[],
    open: (dialect) => opened({ limits: { sectorSize: 4096, dialect } }),
  },
});
backendSuite("our backend before a disk that works in any order", {
  open: () => opened({ shuffled: true }),
});
backendSuite("our backend, read-only,", { readOnly: true, open: () => opened({ readOnly: true }) });
backendSuite("our backend with the least of limits", {
  open: () =>
    opened({
      limits: {
        maxRingPageOrder: 0,
        maxIndirectSegments: 0,
        persistent: false,
        discard: false,
      },
    }),
});
backendSuite("our backend that copies, before a disk that works in any order,", {
  open: () => opened({ shuffled: true, limits: { grants: "copy" } }),
});
