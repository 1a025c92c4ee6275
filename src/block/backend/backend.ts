/**
 * A backend: the life of one vbd on xenbus, from InitWait to Closed, and again when the next frontend comes
 * (the xenbus half of blkback that the seed implies; blkif.h for the keys, architecture in docs/architecture.md).
 *
 * Invariants: connecting and disconnecting happen only in the handler of the other end's state, which runs one call
 * at a time; whatever a connection acquired is given back before the state says so; nothing in a directory that the
 * frontend may write is trusted beyond numbers that are checked here.
 */
import type { BlockStore, BlockStoreInfo } from "../../store/block-store.ts";
import { emulate } from "../../store/emulate.ts";
import {
  type BlkifProtocol,
  blkifLayout,
  parseBlkifProtocol,
  VDISK_CDROM,
  VDISK_READONLY,
  VDISK_REMOVABLE,
} from "../../wire/blkif.ts";
import { type Domain, XenError, type XenStoreOperations } from "../../xen/domain.ts";
import {
  findOtherend,
  readFlag,
  readNumber,
  stateName,
  XenbusDevice,
  XenbusState,
} from "../../xen/xenbus.ts";
import {
  type BackendLimits,
  clamp,
  defaultBackendLimits,
  MAX_INDIRECT_SEGMENTS,
  MAX_RING_PAGE_ORDER,
  type Negotiated,
  segmentsFor,
} from "../features.ts";
import { BackendQueue, type QueueCounters } from "./queue.ts";
import type { DeviceFacts } from "./request.ts";

/** The protocol's unit: the logical block offered, because every dialect agrees at 512. */
const SECTOR_SIZE = 512;

export interface BlockBackendOptions {
  readonly limits?: Partial<BackendLimits>;
  /** Refuse writes, whatever the store and the mode node allow. */
  readonly readOnly?: boolean;
  /** Something a person should know: a state toggled, a ring halted. */
  readonly ontrace?: (event: BackendEvent) => void;
}

export interface BackendEvent {
  readonly kind: "connected" | "disconnected" | "halted" | "failed" | "state";
  readonly message: string;
}

interface Connection {
  readonly queue: BackendQueue;
  readonly negotiated: Negotiated;
}

export class BlockBackend implements AsyncDisposable {
  readonly #domain: Domain;
  readonly #device: XenbusDevice;
  readonly #raw: BlockStore;
  readonly #store: BlockStore;
  readonly #limits: BackendLimits;
  readonly #options: BlockBackendOptions;
  readonly #readOnly: boolean;
  readonly #infoBits: number;
  readonly #ended = Promise.withResolvers<void>();
  #connection: Connection | undefined = undefined;
  #subscription: Disposable | undefined = undefined;
  #facts: DeviceFacts;
  /** Ends with the last new size that was written. */
  #announcing: Promise<void> = Promise.resolve();
  #disposed = false;

  /** Publishes what we allow in `path` and waits for the frontend. Owns `store` from now on. */
  static async open(
    domain: Domain,
    path: string,
    store: BlockStore,
    options: BlockBackendOptions = {},
  ): Promise<BlockBackend> {
    try {
      const end = await findOtherend(domain, path, "backend");
      const mode = (await domain.store.read(`${path}/mode`)) ?? "w";
      const removable = await readFlag(domain.store, `${path}/removable`);
      const cdrom = (await domain.store.read(`${path}/device-type`)) === "cdrom";
      const discard = (await readNumber(domain.store, `${path}/discard-enable`)) !== 0;
      const readOnly = options.readOnly === true || !mode.startsWith("w") || store.info.readOnly;
      const bits =
        (cdrom ? VDISK_CDROM : 0) |
        (removable ? VDISK_REMOVABLE : 0) |
        (readOnly ? VDISK_READONLY : 0);
      const backend = new BlockBackend(new XenbusDevice(domain, end), store, options, {
        readOnly,
        bits,
        discard,
      });
      await backend.#publishLimits();
      await backend.#device.follow(
        (state) => backend.#otherend(state),
        (error) => backend.#trace("failed", String(error)),
      );
      return backend;
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(
    device: XenbusDevice,
    store: BlockStore,
    options: BlockBackendOptions,
    facts: { readOnly: boolean; bits: number; discard: boolean },
  ) {
    this.#domain = device.domain;
    this.#device = device;
    this.#raw = store;
    this.#store = emulate(store, device.domain.reactor);
    this.#options = options;
    this.#readOnly = facts.readOnly;
    this.#infoBits = facts.bits;
    const limits = { ...defaultBackendLimits, ...options.limits };
    this.#limits = {
      ...limits,
      maxRingPageOrder: clamp(limits.maxRingPageOrder, 0, MAX_RING_PAGE_ORDER),
      maxIndirectSegments: clamp(limits.maxIndirectSegments, 0, MAX_INDIRECT_SEGMENTS),
      maxPersistentGrants: clamp(limits.maxPersistentGrants, 0, 1 << 16),
      discard: limits.discard && facts.discard,
    };
    this.#facts = this.#factsOf(store.info);
    this.#subscription = store.subscribe({
      resized: (info) => this.#resized(info),
      failed: (error) => this.#trace("failed", error.message),
    });
  }

  get path(): string {
    return this.#device.path;
  }

  get store(): BlockStore {
    return this.#raw;
  }

  /** What the connected vbd ended with; undefined between connections. */
  get negotiated(): Negotiated | undefined {
    return this.#connection?.negotiated;
  }

  /** Counters of the connected ring; undefined between connections. */
  get counters(): QueueCounters | undefined {
    return this.#connection?.queue.counters;
  }

  /** Resolves when the device has gone for good: the frontend closed it and the toolstack took it offline. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  #trace(kind: BackendEvent["kind"], message: string): void {
    this.#options.ontrace?.({ kind, message: `${this.#device.path}: ${message}` });
  }

  #factsOf(info: BlockStoreInfo): DeviceFacts {
    return {
      sectors: Math.floor(info.size / SECTOR_SIZE),
      readOnly: this.#readOnly,
      sectorsPerBlock: 1,
      maxIndirectSegments: this.#limits.maxIndirectSegments,
      discard: this.#limits.discard && info.discard !== undefined && !this.#readOnly,
    };
  }

  async #publishLimits(): Promise<void> {
    const { path } = this.#device;
    const { maxRingPageOrder, maxIndirectSegments } = this.#limits;
    await this.#domain.store.transaction(async (operations) => {
      await operations.write(`${path}/max-ring-page-order`, String(maxRingPageOrder));
      await operations.write(`${path}/max-ring-pages`, String(1 << maxRingPageOrder));
      if (maxIndirectSegments > 0) {
        await operations.write(
          `${path}/feature-max-indirect-segments`,
          String(maxIndirectSegments),
        );
      }
      await operations.write(`${path}/hotplug-status`, "connected");
      await this.#device.switchState(XenbusState.initWait, operations);
    });
  }

  /** frontend_changed of xen-blkback's xenbus.c. */
  async #otherend(state: XenbusState): Promise<void> {
    switch (state) {
      case XenbusState.initialising:
        if (this.#device.state === XenbusState.closed) {
          await this.#device.switchState(XenbusState.initWait);
        }
        return;
      case XenbusState.initialised:
      // Mini-OS, OVMF and Mirage go straight to Connected.
      case XenbusState.connected:
        if (this.#connection === undefined && this.#device.state !== XenbusState.closing) {
          await this.#connect();
        }
        return;
      case XenbusState.closing:
        await this.#device.switchState(XenbusState.closing);
        return;
      case XenbusState.closed:
      case XenbusState.unknown:
        await this.#disconnect();
        if (this.#device.state === XenbusState.initWait && state === XenbusState.unknown) return;
        if (this.#device.state !== XenbusState.closed) {
          await this.#device.switchState(XenbusState.closed);
        }
        if (!(await readFlag(this.#domain.store, `${this.#device.path}/online`))) {
          this.#ended.resolve();
        }
        return;
    }
  }

  async #connect(): Promise<void> {
    const front = this.#device.otherendPath;
    const store = this.#domain.store;
    const protocol = parseProtocol(await store.read(`${front}/protocol`));
    const references = await this.#ringReferences(front);
    const port = await readNumber(store, `${front}/event-channel`);
    if (port === undefined) throw new XenError("EINVAL", `reading ${front}/event-channel`);
    const persistent =
      this.#limits.persistent && (await readFlag(store, `${front}/feature-persistent`));
    const peer = this.#device.otherendId;
    const ring = this.#domain.grants.mapContiguous(peer, references, false);
    if (typeof ring === "number") {
      throw new XenError("EACCES", `mapping ring-ref ${references.join(" ")}: status ${ring}`);
    }
    let queue: BackendQueue;
    try {
      const channel = this.#domain.events.bindInterdomain(peer, port);
      queue = new BackendQueue({
        domain: this.#domain,
        peer,
        ring,
        layout: blkifLayout(protocol),
        channel,
        store: this.#store,
        facts: this.#facts,
        maxPersistentGrants: persistent ? this.#limits.maxPersistentGrants : 0,
        onhalted: () => this.#halted(),
      });
    } catch (error) {
      ring[Symbol.dispose]();
      throw error;
    }
    const negotiated = this.#negotiatedWith(protocol, references.length, queue.slots, persistent);
    this.#connection = { queue, negotiated };
    await store.transaction((operations) => this.#publishDevice(operations));
    this.#domain.reactor.soon();
    this.#trace("connected", `${protocol}, ${references.length} ring pages`);
  }

  /** One page under `ring-ref`, or 1 << ring-page-order pages under ring-ref0 and so on. */
  async #ringReferences(front: string): Promise<number[]> {
    const store = this.#domain.store;
    const orderText = await store.read(`${front}/ring-page-order`);
    const count = await readNumber(store, `${front}/num-ring-pages`);
    if (orderText === undefined && (count === undefined || count === 1)) {
      const reference =
        (await readNumber(store, `${front}/ring-ref`)) ??
        (await readNumber(store, `${front}/ring-ref0`));
      if (reference === undefined) throw new XenError("EINVAL", `reading ${front}/ring-ref`);
      return [reference];
    }
    const pages = orderText === undefined ? count! : 2 ** Number(orderText.trim());
    const maximum = 1 << this.#limits.maxRingPageOrder;
    if (!(Number.isInteger(pages) && pages >= 1 && pages <= maximum)) {
      throw new XenError("EINVAL", `${front} asks for ${pages} ring pages, at most ${maximum} go`);
    }
    // A ring of one page may be under either name (FreeBSD writes ring-ref, Linux ring-ref0).
    const references: number[] = [];
    for (let i = 0; i < pages; i++) {
      const reference =
        (await readNumber(store, `${front}/ring-ref${i}`)) ??
        (i === 0 ? await readNumber(store, `${front}/ring-ref`) : undefined);
      if (reference === undefined) throw new XenError("EINVAL", `reading ${front}/ring-ref${i}`);
      references.push(reference);
    }
    return references;
  }

  #negotiatedWith(
    protocol: BlkifProtocol,
    ringPages: number,
    ringSlots: number,
    persistent: boolean,
  ): Negotiated {
    const { maxIndirectSegments } = this.#limits;
    return {
      protocol,
      ringPages,
      ringSlots,
      queues: 1,
      maxSegments: segmentsFor(maxIndirectSegments),
      indirect: maxIndirectSegments > 0,
      persistent,
      flush: true,
      barrier: true,
      discard: this.#facts.discard,
      sectorSize: SECTOR_SIZE,
      physicalSectorSize: this.#physicalSectorSize,
      readOnly: this.#readOnly,
      sectors: this.#facts.sectors,
    };
  }

  get #physicalSectorSize(): number {
    const { preferred, minimum } = this.#raw.info.block;
    return Math.max(SECTOR_SIZE, minimum, Math.min(preferred, 4096));
  }

  /** connect() of xen-blkback's xenbus.c: everything a frontend reads when it sees Connected. */
  async #publishDevice(operations: XenStoreOperations): Promise<void> {
    const { path } = this.#device;
    const write = (key: string, value: number | string) =>
      operations.write(`${path}/${key}`, String(value));
    await write("feature-flush-cache", 1);
    await write("feature-barrier", 1);
    const discard = this.#raw.info.discard;
    await write("feature-discard", this.#facts.discard ? 1 : 0);
    if (this.#facts.discard && discard !== undefined) {
      await write("discard-granularity", discard.granularity);
      await write("discard-alignment", discard.alignment);
      await write("discard-secure", discard.secure ? 1 : 0);
      // Ours alone, like Linux's queue/discard_zeroes_data: other frontends do not look for it.
      await write("discard-zeroes", discard.zeroes ? 1 : 0);
    }
    await write("feature-persistent", this.#limits.persistent ? 1 : 0);
    await write("sectors", this.#facts.sectors);
    await write("info", this.#infoBits);
    await write("sector-size", SECTOR_SIZE);
    await write("physical-sector-size", this.#physicalSectorSize);
    await this.#device.switchState(XenbusState.connected, operations);
  }

  #halted(): void {
    this.#trace("halted", "the frontend published an impossible request index; its ring is halted");
    void this.#device
      .fatal(new XenError("EACCES", "impossible request producer index: ring halted"))
      .catch(() => {});
  }

  /** The store has another size: the frontend learns it by `sectors`, then the same state once more. */
  #resized(info: BlockStoreInfo): void {
    this.#facts.sectors = Math.floor(info.size / SECTOR_SIZE);
    if (this.#connection === undefined) return;
    this.#announcing = this.#announcing
      .then(() => this.#announceSize())
      .catch((error: unknown) => this.#trace("failed", String(error)));
  }

  async #announceSize(): Promise<void> {
    if (this.#connection === undefined || this.#device.state !== XenbusState.connected) return;
    await this.#domain.store.transaction(async (operations) => {
      await operations.write(`${this.#device.path}/sectors`, String(this.#facts.sectors));
      await this.#device.switchState(XenbusState.connected, operations);
    });
  }

  async #disconnect(): Promise<void> {
    const connection = this.#connection;
    if (connection === undefined) return;
    this.#connection = undefined;
    await connection.queue.close();
    this.#trace("disconnected", `frontend ${stateName(XenbusState.closed)}`);
  }

  /** Answers what is in flight, gives everything back, flushes and closes the store. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#subscription?.[Symbol.dispose]();
    await this.#device[Symbol.asyncDispose]();
    await this.#disconnect();
    await this.#announcing;
    await this.#device.switchState(XenbusState.closed).catch(() => {});
    this.#ended.resolve();
    await this.#store[Symbol.asyncDispose]();
  }
}

/** A missing key means x86_32-abi on x86, as Linux and tapback have it; ours write the key. */
function parseProtocol(text: string | undefined): BlkifProtocol {
  if (text === undefined) return "x86_32-abi";
  const protocol = parseBlkifProtocol(text);
  if (protocol === undefined) {
    throw new XenError("EINVAL", `unknown fe protocol ${JSON.stringify(text.slice(0, 40))}`);
  }
  return protocol;
}
