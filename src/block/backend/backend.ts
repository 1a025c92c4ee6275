/**
 * A backend: the life of one vbd on xenbus, from InitWait to Closed, and again when the next frontend comes
 * (the xenbus half of blkback that the seed implies; blkif.h for the keys, architecture in docs/architecture.md).
 *
 * Invariants: connecting and disconnecting happen only in the handler of the other end's state, which runs one call
 * at a time; whatever a connection acquired is given back before the state says so; nothing in a directory that the
 * frontend may write is trusted beyond numbers that are checked here.
 */
import type { BlockStore } from "../../store/block-store.ts";
import { type Clock, systemClock } from "../../util/clock.ts";
import { type Domain, XenError, type XenStoreOperations } from "../../xen/domain.ts";
import { findOtherend, readFlag, stateName, XenbusDevice, XenbusState } from "../../xen/xenbus.ts";
import { type BackendLimits, type Negotiated, segmentsFor } from "../features.ts";
import { Connection } from "./connection.ts";
import type { QueueCounters } from "./counters.ts";
import {
  type DeviceNodes,
  type LeftNodes,
  limitKeys,
  readLeftNodes,
  readNodes,
  writeKeys,
} from "./device-nodes.ts";
import { type FrontendOffer, readOffer } from "./offer.ts";
import { backendLimits } from "./parameters.ts";
import type { Unsupported } from "./queue.ts";
import type { RingJournals } from "./ring-journal.ts";
import { ServedDisk } from "./served-disk.ts";

/** A disk that is opened when a frontend connects, and closed when it has gone: while nobody uses it, it is free for
 * others to lock. */
export type StoreOpener = () => Promise<BlockStore>;

export interface BlockBackendOptions {
  readonly limits?: Partial<BackendLimits>;
  /** Refuse writes, whatever the store and the mode node allow. */
  readonly readOnly?: boolean;
  /** What a limit of max_queues=0 means; 1 if absent. */
  readonly cpus?: number;
  /** The system's if absent. */
  readonly clock?: Clock;
  /** Memory that outlives the process: should it die, a successor goes on with what was taken and not answered. */
  readonly journals?: RingJournals;
  /** Something a person should know: a state toggled, a ring halted, a limit out of its range. */
  readonly ontrace?: (event: BackendEvent) => void;
}

export interface BackendEvent {
  readonly kind: "connected" | "disconnected" | "halted" | "failed" | "state" | "statistics";
  readonly message: string;
}

/** Counters of a vbd: the sum, and each ring's. */
export interface BackendCounters extends QueueCounters {
  readonly rings: readonly QueueCounters[];
}

/** Mini-OS, OVMF and Mirage go straight to Connected. */
function waitsForConnected(state: XenbusState): boolean {
  return state === XenbusState.initialised || state === XenbusState.connected;
}

export class BlockBackend implements AsyncDisposable {
  readonly #domain: Domain;
  readonly #device: XenbusDevice;
  readonly #opener: StoreOpener | undefined;
  readonly #clock: Clock;
  readonly #limits: BackendLimits;
  readonly #options: BlockBackendOptions;
  readonly #nodes: DeviceNodes;
  readonly #ended = Promise.withResolvers<void>();
  #disk: ServedDisk | undefined = undefined;
  #connection: Connection | undefined = undefined;
  #negotiated: Negotiated | undefined = undefined;
  /** What a backend before us left, until the frontend's state has told what became of it. */
  #left: LeftNodes | undefined;
  /** The frontend's state was seen once. */
  #met = false;
  /** The store answered EOPNOTSUPP to a flush, or to a discard: it is not offered again. */
  readonly #withdrawn = new Set<Unsupported>();
  /** Ends with the last node that was written beside a change of state. */
  #announcing: Promise<void> = Promise.resolve();
  #disposed = false;

  /** Publishes what we allow in `path` and waits for the frontend; where a backend before us left the vbd connected, goes
   * on with its rings. Owns `store` from now on. */
  static async open(
    domain: Domain,
    path: string,
    store: BlockStore | StoreOpener,
    options: BlockBackendOptions = {},
  ): Promise<BlockBackend> {
    try {
      const end = await findOtherend(domain, path, "backend");
      const nodes = await readNodes(domain.store, path, options.readOnly === true);
      const left = await readLeftNodes(domain.store, path);
      const device = new XenbusDevice(domain, end);
      const backend = new BlockBackend(device, store, options, nodes, left);
      if (left === undefined) await backend.#publishLimits();
      else device.inheritState(XenbusState.connected);
      await backend.#device.follow(
        (state) => backend.#otherend(state),
        (error) => backend.#trace("failed", String(error)),
      );
      return backend;
    } catch (error) {
      if (typeof store !== "function") await store[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(
    device: XenbusDevice,
    store: BlockStore | StoreOpener,
    options: BlockBackendOptions,
    nodes: DeviceNodes,
    left: LeftNodes | undefined,
  ) {
    this.#domain = device.domain;
    this.#device = device;
    this.#options = options;
    this.#nodes = nodes;
    this.#left = left;
    this.#clock = options.clock ?? systemClock;
    const note = (message: string) => this.#trace("state", message);
    this.#limits = backendLimits({ ...options.limits, ...left?.limits }, options.cpus ?? 1, note);
    if (left?.flush === false) this.#withdrawn.add("flush");
    if (left?.discard === false) this.#withdrawn.add("discard");
    this.#opener = typeof store === "function" ? store : undefined;
    if (typeof store !== "function") this.#disk = this.#serve(store);
  }

  #serve(store: BlockStore): ServedDisk {
    return new ServedDisk(store, {
      reactor: this.#domain.reactor,
      limits: this.#limits,
      nodes: this.#nodes,
      withdrawn: this.#withdrawn,
      onresized: () => this.#resized(),
      onfailed: (error) => this.#trace("failed", error.message),
    });
  }

  get path(): string {
    return this.#device.path;
  }

  /** What we allow, each limit in its range. */
  get limits(): BackendLimits {
    return this.#limits;
  }

  /** What the connected vbd ended with; undefined between connections. */
  get negotiated(): Negotiated | undefined {
    return this.#connection === undefined ? undefined : this.#negotiated;
  }

  /** Counters of the connected rings; undefined between connections. */
  get counters(): BackendCounters | undefined {
    const connection = this.#connection;
    if (connection === undefined) return undefined;
    return { ...connection.counters, rings: connection.rings.map((ring) => ring.counters) };
  }

  /** The pages of each connected ring, for whoever wants to look at them. */
  get rings(): readonly Uint8Array[] {
    return this.#connection?.rings.map((ring) => ring.bytes) ?? [];
  }

  /** Resolves when the device has gone for good: the frontend closed it and the toolstack took it offline, or the
   * frontend's directory has gone. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  #trace(kind: BackendEvent["kind"], message: string): void {
    this.#options.ontrace?.({ kind, message: `${this.#device.path}: ${message}` });
  }

  async #publishLimits(): Promise<void> {
    const { store } = this.#domain;
    await store.transaction(async (operations) => {
      await writeKeys(operations, this.path, limitKeys(this.#limits));
      await this.#device.switchState(XenbusState.initWait, operations);
    });
  }

  /** frontend_changed of xen-blkback's xenbus.c. */
  async #otherend(state: XenbusState): Promise<void> {
    const device = this.#device;
    const left = this.#left;
    this.#left = undefined;
    this.#met ||= state !== XenbusState.unknown;
    switch (state) {
      case XenbusState.initialising:
        // While the device had no backend, its frontend began anew.
        if (left !== undefined) await this.#publishLimits();
        // Whoever closed comes back, or one that only began to. Linux, too, ignores one that begins anew while we are
        // connected; and one before whom we are closing, which waits for ever then.
        if (device.state === XenbusState.closed || device.state === XenbusState.closing) {
          await this.#disconnect(state);
          await device.switchState(XenbusState.initWait);
        }
        return;
      case XenbusState.initialised:
      case XenbusState.connected:
        if (left !== undefined) {
          await this.#goOn(left);
          return;
        }
        if (device.state === XenbusState.connected) return;
        await this.#disconnect(state);
        await this.#connect();
        return;
      case XenbusState.closing:
        await device.switchState(XenbusState.closing);
        return;
      case XenbusState.closed:
      case XenbusState.unknown:
        await this.#frontendClosed(state);
    }
  }

  async #frontendClosed(state: XenbusState): Promise<void> {
    const device = this.#device;
    const gone = state === XenbusState.unknown && (await this.#frontendIsGone());
    // The toolstack may still write it, and a state that is none is no reason to give up waiting.
    if (
      gone ? !this.#met : state === XenbusState.unknown && device.state === XenbusState.initWait
    ) {
      return;
    }
    await this.#disconnect(state);
    if (device.state !== XenbusState.closed) await device.switchState(XenbusState.closed);
    const online = await readFlag(this.#domain.store, `${device.path}/online`);
    if (gone || !online) this.#ended.resolve();
  }

  /** Whether the frontend's directory was removed, and our rights to it with it: its domain is dead. */
  async #frontendIsGone(): Promise<boolean> {
    try {
      const { store } = this.#domain;
      return (await store.read(`${this.#device.otherendPath}/state`)) === undefined;
    } catch (error) {
      if ((error as { code?: unknown }).code !== "EACCES") throw error;
      return true;
    }
  }

  async #connect(): Promise<void> {
    const device = this.#device;
    const before = device.state;
    const offer = await this.#openConnection(false);
    const { store } = this.#domain;
    const state = await store.transaction((operations) => this.#publishDevice(operations));
    if (waitsForConnected(state)) {
      this.#served("connected", offer);
      return;
    }
    // Said by a run of the transaction that came to nothing.
    if (device.state === XenbusState.connected) device.inheritState(before);
    await this.#disconnect(state);
  }

  /** Serves the rings that a backend before us was connected to; both directories say so already. */
  async #goOn(left: LeftNodes): Promise<void> {
    const { sectorSize } = this.#limits;
    if (left.sectorSize !== sectorSize) {
      const message = `the frontend was connected with sectors of ${left.sectorSize}, not ${sectorSize}`;
      throw new XenError("EINVAL", message);
    }
    const offer = await this.#openConnection(true);
    this.#served("goes on", offer);
    if (left.sectors !== this.#disk?.sectorsNode) this.#resized();
  }

  #served(how: string, { protocol, rings }: FrontendOffer): void {
    this.#domain.reactor.soon();
    const pages = rings[0]!.references.length;
    this.#trace("connected", `${how}: ${protocol}, ${rings.length} rings of ${pages} pages`);
  }

  async #openConnection(continued: boolean): Promise<FrontendOffer> {
    // The disk first: it may take long, and whoever begins anew meanwhile has another offer.
    const disk = this.#disk ?? this.#serve(await this.#opener!());
    this.#disk = disk;
    try {
      const offer = await readOffer(this.#domain.store, this.#device.otherendPath, this.#limits);
      const connection = this.#connectionOf(offer, disk, continued);
      this.#connection = connection;
      this.#negotiated = this.#negotiatedWith(offer, connection, disk);
      return offer;
    } catch (error) {
      await this.#closeOpened();
      throw error;
    }
  }

  #connectionOf(offer: FrontendOffer, disk: ServedDisk, continued: boolean): Connection {
    return new Connection(offer, {
      domain: this.#domain,
      clock: this.#clock,
      peer: this.#device.otherendId,
      path: this.#device.path,
      store: disk.store,
      facts: disk.facts,
      limits: this.#limits,
      journals: this.#options.journals,
      continued,
      onhalted: (ring) => this.#halted(ring),
      onunsupported: (what) => this.#withdraw(what),
      onstatistics: (line) => this.#trace("statistics", line),
    });
  }

  #negotiatedWith(offer: FrontendOffer, connection: Connection, disk: ServedDisk): Negotiated {
    const { maxIndirectSegments, sectorSize } = this.#limits;
    const flush = !this.#withdrawn.has("flush");
    return {
      protocol: offer.protocol,
      ringPages: offer.rings[0]!.references.length,
      ringSlots: connection.slots,
      queues: offer.rings.length,
      maxSegments: segmentsFor(maxIndirectSegments),
      indirect: maxIndirectSegments > 0,
      persistent: connection.persistent,
      flush,
      barrier: flush,
      discard: disk.facts.discard,
      sectorSize,
      physicalSectorSize: disk.physicalSectorSize,
      readOnly: disk.facts.readOnly,
      sectors: disk.facts.sectors,
    };
  }

  /** connect() of xen-blkback's xenbus.c: everything a frontend reads when it sees Connected. Resolves to the frontend's
   * state; nothing is written where it waits for Connected no more. It may have closed, seen a Closed that we wrote before,
   * and begun anew: as we ignore that when we are connected, it would wait for ever. */
  async #publishDevice(operations: XenStoreOperations): Promise<XenbusState> {
    const state = await this.#device.readOtherend(operations);
    if (!waitsForConnected(state)) return state;
    await writeKeys(operations, this.path, this.#disk!.keys);
    // What went wrong with a frontend before is no concern of this one.
    await operations.remove(`${this.path}/error`);
    await this.#device.switchState(XenbusState.connected, operations);
    return state;
  }

  /** The frontend published an impossible index. Rings that did not are served on. */
  #halted(ring: number): void {
    const what = `impossible request producer index: ring ${ring} halted`;
    this.#trace("halted", `the frontend published an ${what}`);
    const error = new XenError("EACCES", what);
    if (this.#connection?.halted !== false) void this.#device.fatal(error).catch(() => {});
    else this.#announce(() => this.#domain.store.write(`${this.path}/error`, `EACCES ${what}`));
  }

  /** The store cannot what was offered: the node says so from now on (xen_blkbk_flush_diskcache, xen_blkbk_barrier). */
  #withdraw(what: Unsupported): void {
    if (this.#withdrawn.has(what)) return;
    this.#withdrawn.add(what);
    this.#trace("state", `the disk cannot ${what}: not offered any more`);
    const keys = what === "flush" ? ["flush-cache", "barrier"] : ["discard"];
    if (what === "discard" && this.#disk !== undefined) this.#disk.facts.discard = false;
    if (this.#negotiated !== undefined) {
      const lost = what === "flush" ? { flush: false, barrier: false } : { discard: false };
      this.#negotiated = { ...this.#negotiated, ...lost };
    }
    this.#announce(async () => {
      for (const key of keys) await this.#domain.store.write(`${this.path}/feature-${key}`, "0");
    });
  }

  /** The store has another size, smaller too: the frontend learns it by `sectors`, then the same state once more. */
  #resized(): void {
    const disk = this.#disk;
    if (disk === undefined) return;
    if (this.#negotiated !== undefined) {
      this.#negotiated = { ...this.#negotiated, sectors: disk.facts.sectors };
    }
    this.#announce(async () => {
      const state = String(XenbusState.connected);
      await this.#domain.store.transaction(async (operations) => {
        // Read in the transaction: where the state changes meanwhile, that change is the last.
        if ((await operations.read(`${this.path}/state`)) !== state) return;
        await operations.write(`${this.path}/sectors`, String(disk.sectorsNode));
        await operations.write(`${this.path}/state`, state);
      });
    });
  }

  /** Writes nodes after those that are being written. */
  #announce(work: () => Promise<void>): void {
    this.#announcing = this.#announcing
      .then(() => (this.#disposed ? undefined : work()))
      .catch((error: unknown) => this.#trace("failed", String(error)));
  }

  async #disconnect(state: XenbusState): Promise<void> {
    const connection = this.#connection;
    if (connection === undefined) return;
    this.#connection = undefined;
    await connection.close();
    await this.#closeOpened();
    this.#trace("disconnected", `frontend ${stateName(state)}`);
  }

  /** A disk that was opened for the connection that has ended. */
  async #closeOpened(): Promise<void> {
    if (this.#opener === undefined) return;
    const disk = this.#disk;
    this.#disk = undefined;
    await disk?.[Symbol.asyncDispose]();
  }

  /** Answers what is in flight, gives everything back, flushes and closes the store. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end(async () => {
      await this.#disconnect(XenbusState.closed);
      await this.#announcing;
      await this.#device.switchState(XenbusState.closed).catch(() => {});
    });
  }

  /** As disposal, but the vbd stays as it is: a connected frontend goes on to fill its rings, and a backend that is opened
   * after us serves them. */
  async leave(): Promise<void> {
    await this.#end(async () => {
      const connection = this.#connection;
      this.#connection = undefined;
      await connection?.leave();
      await this.#announcing;
    });
  }

  async #end(part: () => Promise<void>): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await this.#device[Symbol.asyncDispose]();
    await part();
    this.#ended.resolve();
    const disk = this.#disk;
    this.#disk = undefined;
    await disk?.[Symbol.asyncDispose]();
  }
}
