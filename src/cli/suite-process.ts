/**
 * The process in which `vbdkit test` runs a suite: it registers the tests, and the runner of node:test that started it
 * hears of their outcomes. Its one argument is a SuiteJob as JSON.
 */
import { BlockBackend } from "../block/backend/backend.ts";
import { type DialectName, dialects } from "../block/features.ts";
import { BlockFrontend } from "../block/frontend/frontend.ts";
import { Reactor } from "../io/reactor.ts";
import type { BlockStore, StoreSpec } from "../store/block-store.ts";
import { Disk } from "../store/disk.ts";
import { openStore } from "../store/registry.ts";
import {
  backendSuite,
  frontendSuite,
  type OpenedBackend,
  type OpenedFrontend,
  type OpenedStore,
  storeSuite,
  vbdPair,
} from "../testing/index.ts";
import { systemClock } from "../util/clock.ts";
import type { SuiteJob } from "./commands/test.ts";

/** Bytes at the start of the disk that the suites use. */
const USED_BYTES = 2 ** 20;

/** What the suite must be told of a disk. */
interface Nature {
  readonly readOnly: boolean;
  readonly forgets: boolean;
  /** The first bytes of a disk that cannot be cleared. */
  readonly contents: Uint8Array | undefined;
}

async function natureOf(spec: StoreSpec): Promise<Nature> {
  const reactor = new Reactor();
  await using disk = new Disk(await openStore(spec, { reactor }), reactor);
  const used = Math.min(USED_BYTES, disk.size);
  if (disk.info.readOnly) {
    return { readOnly: true, forgets: false, contents: await disk.read(0, used) };
  }
  const mark = new Uint8Array(disk.info.block.minimum).fill(0xa5);
  await disk.write(0, mark);
  const back = await disk.read(0, mark.length);
  return { readOnly: false, forgets: !back.every((byte) => byte === 0xa5), contents: undefined };
}

/** The disk, with zeroes where the suite works. */
async function openCleared(spec: StoreSpec, nature: Nature, reactor: Reactor): Promise<BlockStore> {
  const { readOnly } = nature;
  if (!readOnly && !nature.forgets) {
    // On a reactor of its own: what follows shall begin with an untouched store.
    const own = new Reactor();
    await using disk = new Disk(await openStore(spec, { reactor: own }), own);
    await disk.writeZeroes(0, Math.min(USED_BYTES, disk.size));
    await disk.flush();
  }
  return await openStore(spec, { reactor, readOnly });
}

/** Nothing of a disk that is opened anew outlives its closing, where it lies in memory. */
const volatile = new Set(["memory", "null"]);

async function openedStore(spec: StoreSpec, nature: Nature): Promise<OpenedStore> {
  const reactor = new Reactor();
  const again = async (): Promise<OpenedStore> => ({
    reactor,
    store: await openStore(spec, { reactor }),
  });
  return {
    reactor,
    store: await openCleared(spec, nature, reactor),
    ...(volatile.has(spec.driver) ? {} : { reopen: again }),
  };
}

async function openedBackend(spec: StoreSpec, nature: Nature): Promise<OpenedBackend> {
  await using undo = new AsyncDisposableStack();
  const { readOnly } = nature;
  const pair = undo.use(await vbdPair({ readOnly }));
  const store = await openCleared(spec, nature, pair.reactor);
  undo.use(await BlockBackend.open(pair.backendDomain, pair.paths.backend, store, { readOnly }));
  const ends = undo.move();
  return {
    frontendDomain: pair.frontendDomain,
    backendDomid: pair.backendDomain.id,
    paths: pair.paths,
    takeOffline: () => pair.takeOffline(),
    mappedPages: () => pair.backendDomain.grants.counters.mapped,
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

/** Our frontend before a scripted backend: the disk has no part in it. */
async function openedFrontend(dialect: DialectName): Promise<OpenedFrontend> {
  const pair = await vbdPair();
  return {
    backendDomain: pair.backendDomain,
    frontendDomid: pair.frontendDomain.id,
    reactor: pair.reactor,
    paths: pair.paths,
    connect: () =>
      BlockFrontend.connect(pair.frontendDomain, pair.paths.frontend, {
        clock: systemClock,
        limits: { dialect },
      }),
    leftovers: () => pair.frontendDomain.grants.counters.granted,
    [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose](),
  };
}

/** The disk as our frontend shows it, behind a ring with our backend at its other end. */
async function openedVbd(spec: StoreSpec, nature: Nature): Promise<OpenedStore> {
  const backend = await openedBackend(spec, nature);
  const { frontendDomain, paths } = backend;
  const frontend = await BlockFrontend.connect(frontendDomain, paths.frontend, {
    clock: systemClock,
  });
  const store = new Proxy(frontend, {
    get(target, name) {
      if (name === Symbol.asyncDispose) {
        return async () => {
          await target[Symbol.asyncDispose]();
          await backend[Symbol.asyncDispose]();
        };
      }
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return { reactor: frontendDomain.reactor, store };
}

const allDialects = Object.keys(dialects) as DialectName[];

const { suite, name, spec } = JSON.parse(process.argv[2]!) as SuiteJob;
const nature = await natureOf(spec);
const { contents, ...flags } = nature;
const storeOptions = {
  ...flags,
  usedBytes: USED_BYTES,
  ...(contents === undefined
    ? {}
    : { contents: (offset: number, length: number) => contents.slice(offset, offset + length) }),
};
switch (suite) {
  case "store":
    storeSuite(name, { ...storeOptions, open: () => openedStore(spec, nature) });
    break;
  case "backend":
    backendSuite(`the backend of ${name}`, { ...flags, open: () => openedBackend(spec, nature) });
    break;
  case "frontend":
    frontendSuite("the frontend", { open: openedFrontend, dialects: allDialects });
    storeSuite(`${name} behind a ring`, { ...storeOptions, open: () => openedVbd(spec, nature) });
    break;
}
