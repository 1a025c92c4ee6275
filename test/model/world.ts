/** Our frontend before our backend, with a store of bytes behind them, in a machine whose every grant, mapping and port
 * is counted at the end. */
import assert from "node:assert/strict";
import {
  type BackendLimits,
  BlockBackend,
  BlockFrontend,
  type FrontendLimits,
} from "../../src/block/index.ts";
import { emulate } from "../../src/store/emulate.ts";
import { openStore } from "../../src/store/registry.ts";
import { RequestRunner, ShufflingStore, type VbdPair, vbdPair } from "../../src/testing/index.ts";
import { systemClock } from "../../src/util/clock.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { openPorts } from "./open-ports.ts";
import { SpoiltStore } from "./spoilt-store.ts";

/** Some requests are then always in flight. */
const SHUFFLE_MILLISECONDS = 3;

export interface WorldOptions {
  readonly frontend: Partial<FrontendLimits>;
  readonly backend: Partial<BackendLimits>;
  /** Bytes; whole pages. */
  readonly size: number;
  /** The disk does requests in any order, some milliseconds later; undefined for one that does them at once. */
  readonly shuffle: number | undefined;
  /** Entries of the guest's grant table: few make it wait for grants. */
  readonly grantEntries?: number;
}

export class World implements AsyncDisposable {
  readonly pair: VbdPair;
  readonly backend: BlockBackend;
  readonly store: SpoiltStore;
  readonly #options: WorldOptions;
  /** What the domains have of their own: their xenstore rings, for instance. */
  readonly #before: readonly number[];
  #frontend: BlockFrontend | undefined;
  #runner: RequestRunner | undefined;

  static async open(options: WorldOptions): Promise<World> {
    const { grantEntries } = options;
    const pair = await vbdPair(grantEntries === undefined ? {} : { grantEntries });
    const before = [pair.frontendDomain, pair.backendDomain].map(openPorts);
    const parameters = { size: String(options.size) };
    const spec = { driver: "memory", parameters, filters: [] };
    const plain = await openStore(spec, { reactor: pair.reactor });
    const disk =
      options.shuffle === undefined
        ? plain
        : new ShufflingStore(plain, pair.reactor, options.shuffle, SHUFFLE_MILLISECONDS);
    const store = new SpoiltStore(disk, pair.reactor);
    const { backendDomain, paths } = pair;
    const limits = options.backend;
    const backend = await BlockBackend.open(backendDomain, paths.backend, store, { limits });
    const world = new World(pair, backend, store, options, before);
    await world.attach();
    return world;
  }

  private constructor(
    pair: VbdPair,
    backend: BlockBackend,
    store: SpoiltStore,
    options: WorldOptions,
    before: readonly number[],
  ) {
    this.pair = pair;
    this.backend = backend;
    this.store = store;
    this.#options = options;
    this.#before = before;
  }

  get frontend(): BlockFrontend {
    return this.#frontend!;
  }

  /** Submits to the frontend, which has every operation here. */
  get runner(): RequestRunner {
    return this.#runner!;
  }

  async attach(): Promise<void> {
    const { frontendDomain, paths, reactor } = this.pair;
    this.#frontend = await BlockFrontend.connect(frontendDomain, paths.frontend, {
      clock: systemClock,
      limits: this.#options.frontend,
    });
    this.#runner = new RequestRunner(emulate(this.#frontend, reactor), reactor);
  }

  /** Closes the frontend, after which nobody has anything of the other's, and lets the next one come. */
  async detach(): Promise<void> {
    const { frontendDomain, paths } = this.pair;
    await this.#frontend?.[Symbol.asyncDispose]();
    this.#runner?.[Symbol.dispose]();
    this.#frontend = undefined;
    this.assertNothingLeft();
    await frontendDomain.store.write(`${paths.frontend}/state`, "1");
  }

  assertNothingLeft(): void {
    const { frontendDomain, backendDomain } = this.pair;
    const domains: Domain[] = [frontendDomain, backendDomain];
    for (const [index, domain] of domains.entries()) {
      const { granted, mapped, quarantined } = domain.grants.counters;
      const counts = { granted, mapped, quarantined, ports: openPorts(domain) };
      const ports = this.#before[index]!;
      assert.deepEqual(
        counts,
        { granted: 0, mapped: 0, quarantined: 0, ports },
        `domain ${domain.id}`,
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#frontend?.[Symbol.asyncDispose]();
    this.#runner?.[Symbol.dispose]();
    await this.backend[Symbol.asyncDispose]();
    try {
      this.assertNothingLeft();
    } finally {
      await this.pair[Symbol.asyncDispose]();
    }
  }
}
