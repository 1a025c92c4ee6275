/** The drivers and filters there are, by name, and how a StoreSpec becomes an open store. */
import { type Reactor, threadReactor } from "../io/reactor.ts";
import { didYouMean } from "../util/nearest.ts";
import type {
  BlockStore,
  EngineChoice,
  StoreContext,
  StoreDriver,
  StoreFilter,
  StoreSpec,
} from "./block-store.ts";
import { parseDiskText, parseDiskWords } from "./disk-syntax.ts";
import { fileDriver } from "./drivers/file.ts";
import { memoryDriver } from "./drivers/memory.ts";
import { nbdDriver } from "./drivers/nbd.ts";
import { nullDriver } from "./drivers/null.ts";
import { patternDriver } from "./drivers/pattern.ts";
import { StoreError } from "./errors.ts";
import { cowFilter } from "./filters/cow.ts";
import { delayFilter } from "./filters/delay.ts";
import { errorFilter } from "./filters/error.ts";
import { logFilter } from "./filters/log.ts";
import { type Parameter, parseParameters } from "./parameters.ts";
import { refuseFormat } from "./probe.ts";

/** Stores opened through parameters of stores (overlays of overlays): deeper is a circle. */
const MAX_NESTING = 16;

/** A driver whose options are its own business: what is parsed by its table is given to its open. */
export interface AnyDriver extends Described {
  readonly positional?: string;
  open(options: never, context: StoreContext): Promise<BlockStore>;
}
export interface AnyFilter extends Described {
  readonly onlyReads?: boolean;
  wrap(next: BlockStore, options: never, context: StoreContext): Promise<BlockStore>;
}
interface Described {
  readonly name: string;
  readonly summary: string;
  readonly parameters: Readonly<Record<string, Parameter<unknown>>>;
}

const allDrivers = new Map<string, AnyDriver>();
const allFilters = new Map<string, AnyFilter>();

/** By name, those of the user among them. */
export const drivers: ReadonlyMap<string, AnyDriver> = allDrivers;
/** By name, those of the user among them. */
export const filters: ReadonlyMap<string, AnyFilter> = allFilters;

/** Makes a driver known by its name, in this thread. Throws StoreError("EEXIST") where the name is taken, and EINVAL
 * for a name that no command line could say. */
export function registerDriver<O>(driver: StoreDriver<O>): void {
  register(allDrivers, driver as unknown as AnyDriver);
}

/** As registerDriver. */
export function registerFilter<O>(filter: StoreFilter<O>): void {
  register(allFilters, filter as unknown as AnyFilter);
}

function register<T extends Described>(map: Map<string, T>, described: T): void {
  const { name } = described;
  if (!/^[a-z][a-z0-9-]*$/.test(name)) {
    throw new StoreError("EINVAL", `"${name}" is no name for a driver or filter: a-z, 0-9, "-"`);
  }
  if (map.has(name)) throw new StoreError("EEXIST", `there is a "${name}" already`);
  map.set(name, described);
}

registerDriver(fileDriver);
registerDriver(memoryDriver);
registerDriver(nbdDriver);
registerDriver(nullDriver);
registerDriver(patternDriver);
registerFilter(cowFilter);
registerFilter(delayFilter);
registerFilter(errorFilter);
registerFilter(logFilter);

/** The same disk without its lock; undefined where its driver locks nothing. */
export function unlockedSpec(spec: StoreSpec): StoreSpec | undefined {
  if (drivers.get(spec.driver)?.parameters.lock === undefined) return undefined;
  return { ...spec, parameters: { lock: "off", ...spec.parameters } };
}

export interface OpenStoreOptions {
  /** The thread's own if absent. */
  readonly reactor?: Reactor;
  /** Refuse writing, whatever the disk would allow. */
  readonly readOnly?: boolean;
  readonly engine?: EngineChoice;
  /** Ends opening. */
  readonly signal?: AbortSignal;
}

/** Opens a disk: a StoreSpec, or DISK as a person types it ("disk.img", "memory 1G", "nbd://host/export"). Rejects with a
 * StoreError whose message says what to do, and leaves nothing open then. */
export function openStore(
  disk: string | StoreSpec,
  options: OpenStoreOptions = {},
): Promise<BlockStore> {
  return new Opening(options).open(disk);
}

/** One call of openStore, with what it opens on the way. */
class Opening {
  readonly #reactor: Reactor;
  readonly #options: OpenStoreOptions;
  readonly #signal: AbortSignal;

  constructor(options: OpenStoreOptions) {
    this.#options = options;
    this.#reactor = options.reactor ?? threadReactor();
    this.#signal = options.signal ?? new AbortController().signal;
  }

  async open(disk: string | StoreSpec): Promise<BlockStore> {
    this.#signal.throwIfAborted();
    const spec = typeof disk === "string" ? parseDiskText(disk, [], { drivers, filters }) : disk;
    return await this.#open(spec, this.#options.readOnly === true, 0);
  }

  async #open(spec: StoreSpec, readOnly: boolean, depth: number): Promise<BlockStore> {
    if (depth > MAX_NESTING) {
      throw new StoreError("EINVAL", `more than ${MAX_NESTING} disks opened through one another`);
    }
    // Every name and parameter is checked before anything is opened.
    const driver = find("driver", drivers, spec.driver);
    const driverOptions = parseParameters(driver.name, driver.parameters, spec.parameters);
    let protectedBelow = readOnly;
    const layers = spec.filters.map(({ name, parameters }) => {
      const filter = find("filter", filters, name);
      const options = parseParameters(filter.name, filter.parameters, parameters);
      const context = this.#context(protectedBelow, depth);
      protectedBelow ||= filter.onlyReads === true;
      return { filter, options: options as never, context };
    });
    let store: BlockStore;
    try {
      store = await driver.open(driverOptions as never, this.#context(protectedBelow, depth));
    } catch (error) {
      throw spec.guessed === true ? slipOf(error, spec) : error;
    }
    try {
      if (spec.guessed === true) await refuseFormat(store, spec, this.#reactor);
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
    for (const { filter, options, context } of layers.toReversed()) {
      store = await filter.wrap(store, options, context);
    }
    return store;
  }

  #context(readOnly: boolean, depth: number): StoreContext {
    return {
      reactor: this.#reactor,
      signal: this.#signal,
      readOnly,
      engine: this.#options.engine ?? "auto",
      open: (inner, options) =>
        this.#open(inner, readOnly || options?.readOnly === true, depth + 1),
    };
  }
}

function find<T>(kind: string, known: ReadonlyMap<string, T>, name: string): T {
  const found = known.get(name);
  if (found !== undefined) return found;
  throw new StoreError("EINVAL", `there is no ${kind} "${name}"${didYouMean(name, known.keys())}`);
}

/** "memroy 1G" is taken for the name of a file. */
function slipOf(error: unknown, spec: StoreSpec): unknown {
  const word = Object.values(spec.parameters)[0]?.split(/\s/, 1)[0] ?? "";
  const hint = didYouMean(word, drivers.keys());
  if (!(error instanceof StoreError) || error.code !== "ENOENT" || hint === "") return error;
  return new StoreError("ENOENT", `${error.message}${hint}`, { cause: error });
}

/** DISK from words: `[DRIVER] NAME [key=value ...]`. Without a driver the name alone decides, never the content: an NBD
 * URI, or else a raw file. A parameter goes to the one of `filterNames` (outermost first) that declares it, or else to
 * the driver. Throws StoreError("EINVAL"). */
export function parseDisk(
  words: readonly string[],
  filterNames: readonly string[] = [],
): StoreSpec {
  return parseDiskWords(words, filterNames, { drivers, filters });
}
