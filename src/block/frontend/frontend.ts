/**
 * A frontend: the life of one vbd on xenbus, and the disk it shows (xen-blkfront.c: blkfront_probe, talk_to_blkback,
 * blkfront_connect; FreeBSD's xbd_attach, xbd_initialize, xbd_connect).
 *
 * It is a BlockStore: whatever is written against that port works over a ring. Invariants: nothing the backend writes
 * is trusted beyond numbers that are checked here; whatever was granted is taken back before the memory is used again.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { FrontRing } from "../../ring/front-ring.ts";
import type {
  BlockRequest,
  BlockStore,
  BlockStoreInfo,
  Extent,
  NativeFeature,
  StoreListener,
} from "../../store/block-store.ts";
import { Operation } from "../../store/block-store.ts";
import { Errno, StoreError } from "../../store/errors.ts";
import type { Clock } from "../../util/clock.ts";
import { blkifLayout, VDISK_READONLY } from "../../wire/blkif.ts";
import {
  type Domain,
  type EventChannel,
  type OwnPages,
  PAGE_SIZE,
  XenError,
} from "../../xen/domain.ts";
import {
  findOtherend,
  readFlag,
  readNumber,
  stateName,
  XenbusDevice,
  XenbusState,
} from "../../xen/xenbus.ts";
import {
  clamp,
  defaultFrontendLimits,
  type FrontendLimits,
  MAX_INDIRECT_SEGMENTS,
  MAX_RING_PAGE_ORDER,
  type Negotiated,
  segmentsFor,
} from "../features.ts";
import { PagePool } from "./page-pool.ts";
import { type FrontendCounters, FrontendQueue, type QueueFeatures } from "./queue.ts";

/** Bytes of a sector in every field of the protocol. */
const SECTOR_SIZE = 512;
/** The longest request taken; it is cut into as many as the ring needs. NBD's customary maximum. */
const MAX_REQUEST_BYTES = 32 << 20;
/** A backend that does not answer Closing is left behind after this: it may be dead. */
const CLOSE_TIMEOUT_MILLISECONDS = 5000;

export interface BlockFrontendOptions {
  readonly limits?: Partial<FrontendLimits>;
  readonly clock: Clock;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
}

interface Connection {
  readonly ring: OwnPages;
  readonly pool: PagePool;
  readonly queue: FrontendQueue;
  readonly features: QueueFeatures;
  readonly negotiated: Negotiated;
}

/** What we agreed to before the backend showed the device. */
interface Offer {
  readonly ring: OwnPages;
  readonly frontRing: FrontRing;
  readonly channel: EventChannel;
  readonly maxSegments: number;
}

export class BlockFrontend implements BlockStore {
  readonly #domain: Domain;
  readonly #device: XenbusDevice;
  readonly #limits: FrontendLimits;
  readonly #clock: Clock;
  readonly #vdev: number;
  readonly #connected = Promise.withResolvers<void>();
  readonly #otherendClosed = Promise.withResolvers<void>();
  readonly #listeners = new Set<StoreListener>();
  #offer: Offer | undefined = undefined;
  #connection: Connection | undefined = undefined;
  #info: BlockStoreInfo | undefined = undefined;
  #otherendState: XenbusState = XenbusState.unknown;
  #error: Error | undefined = undefined;
  #disposal: Promise<void> | undefined = undefined;

  /** Connects to the backend that the directory names; resolves with a disk. Rejects with what the backend said. */
  static async connect(
    domain: Domain,
    path: string,
    options: BlockFrontendOptions,
  ): Promise<BlockFrontend> {
    options.signal?.throwIfAborted();
    const end = await findOtherend(domain, path, "frontend");
    const vdev = (await readNumber(domain.store, `${path}/virtual-device`)) ?? 0;
    const frontend = new BlockFrontend(new XenbusDevice(domain, end), vdev, options);
    const abort = () => frontend.#connected.reject(options.signal?.reason);
    options.signal?.addEventListener("abort", abort, { once: true });
    try {
      await frontend.#device.follow(
        (state) => frontend.#otherend(state),
        (error) => frontend.#fatal(error),
      );
      await frontend.#connected.promise;
      return frontend;
    } catch (error) {
      await frontend[Symbol.asyncDispose]();
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", abort);
    }
  }

  private constructor(device: XenbusDevice, vdev: number, options: BlockFrontendOptions) {
    this.#domain = device.domain;
    this.#device = device;
    this.#vdev = vdev;
    this.#clock = options.clock;
    const limits = { ...defaultFrontendLimits, ...options.limits };
    this.#limits = {
      ...limits,
      maxRingPageOrder: clamp(limits.maxRingPageOrder, 0, MAX_RING_PAGE_ORDER),
      maxIndirectSegments: clamp(limits.maxIndirectSegments, 0, MAX_INDIRECT_SEGMENTS),
      maxPoolPages: clamp(limits.maxPoolPages, 32, 1 << 18),
    };
    this.#connected.promise.catch(() => {});
  }

  get path(): string {
    return this.#device.path;
  }

  get info(): BlockStoreInfo {
    if (this.#info === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return this.#info;
  }

  get negotiated(): Negotiated {
    if (this.#connection === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return this.#connection.negotiated;
  }

  get counters(): FrontendCounters {
    if (this.#connection === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return this.#connection.queue.counters;
  }

  /** The ring's pages, for whoever wants to look at them (or to break them, in a test). */
  get ring(): {
    readonly region: MemoryRegion;
    readonly start: number;
    readonly bytes: Uint8Array;
  } {
    const ring = this.#connection?.ring;
    if (ring === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return { region: ring.region, start: ring.start, bytes: bytesOf(ring) };
  }

  submit(request: BlockRequest): void {
    const connection = this.#connection;
    request.status = connection === undefined ? Errno.EIO : this.#check(request);
    if (connection === undefined || request.status !== 0) this.#refuse(request);
    else connection.queue.submit(request);
  }

  /** The rules that the backend would enforce, so that they fail here and by their names. */
  #check(request: BlockRequest): number {
    if (request.operation === Operation.flush) return 0;
    const info = this.info;
    const { offset, length } = request;
    if (
      offset < 0 ||
      length < 0 ||
      offset % SECTOR_SIZE !== 0 ||
      length % SECTOR_SIZE !== 0 ||
      length > MAX_REQUEST_BYTES * (request.segments === undefined ? Number.MAX_SAFE_INTEGER : 1)
    ) {
      return Errno.EINVAL;
    }
    if (offset + length > info.size) {
      return request.operation === Operation.read ? Errno.EINVAL : Errno.ENOSPC;
    }
    const reads = request.operation === Operation.read || request.operation === Operation.cache;
    return info.readOnly && !reads ? Errno.EROFS : 0;
  }

  readonly #refused: BlockRequest[] = [];
  readonly #refuser = {
    kick: (): void => {
      for (const request of this.#refused.splice(0)) request.owner.completed(request);
    },
  };
  #refuse(request: BlockRequest): void {
    if (this.#refused.push(request) === 1) this.#domain.reactor.dirty(this.#refuser);
  }

  /** The protocol says nothing of allocation: one extent of data. */
  async *extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    signal?.throwIfAborted();
    if (offset < 0 || length < 0 || offset + length > this.info.size) {
      throw new StoreError("EINVAL", "extents beyond the end of the disk");
    }
    if (length > 0) yield { offset, length, hole: false, zero: false };
  }

  async resize(): Promise<void> {
    throw new StoreError("EOPNOTSUPP", "a frontend cannot resize its disk: ask the backend");
  }

  subscribe(listener: StoreListener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** What is on the ring cannot be called back: it is awaited. */
  async cancel(): Promise<void> {
    await this.#connection?.queue.cancel();
  }

  #announce(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    for (const listener of this.#listeners) listener.failed?.(error);
  }

  /** blkback_changed of xen-blkfront.c. */
  async #otherend(state: XenbusState): Promise<void> {
    this.#otherendState = state;
    switch (state) {
      case XenbusState.initWait:
      case XenbusState.initialised:
        if (this.#offer === undefined) await this.#initialise();
        return;
      case XenbusState.connected:
        if (this.#offer === undefined) await this.#initialise();
        else if (this.#connection === undefined) await this.#connect();
        else await this.#resized();
        return;
      case XenbusState.closing:
      case XenbusState.closed:
      case XenbusState.unknown:
        await this.#gone(state);
    }
  }

  async #gone(state: XenbusState): Promise<void> {
    if (this.#offer === undefined && state !== XenbusState.closing) return;
    const said = await this.#domain.store
      .read(`${this.#device.otherendPath}/error`)
      .catch(() => undefined);
    const why = said === undefined ? `went to ${stateName(state)}` : `failed: ${said}`;
    const error = new XenError("EIO", `${this.#device.otherendPath} ${why}`);
    this.#connected.reject(error);
    if (state !== XenbusState.closing) this.#otherendClosed.resolve();
    if (this.#disposal !== undefined) return;
    this.#announce(error);
    this.#connection?.queue.fail(Errno.EIO);
    if (this.#device.state !== XenbusState.closing) {
      await this.#device.switchState(XenbusState.closing);
    }
    if (state === XenbusState.closing) await this.#device.switchState(XenbusState.closed);
  }

  /** talk_to_blkback: the ring's pages, the port, and what we want; then Initialised. */
  async #initialise(): Promise<void> {
    const store = this.#domain.store;
    const back = this.#device.otherendPath;
    const peer = this.#device.otherendId;
    const maxOrder = (await readNumber(store, `${back}/max-ring-page-order`, 64)) ?? 0;
    const order = Math.min(maxOrder, this.#limits.maxRingPageOrder);
    const allowed = (await readNumber(store, `${back}/feature-max-indirect-segments`)) ?? 0;
    const ring = this.#domain.grants.allocate(1 << order);
    if (ring === undefined) throw new XenError("ENOMEM", "no memory left for a ring");
    for (let page = 0; page < ring.count; page++) {
      if (!ring.grant(page, peer, false)) {
        ring[Symbol.dispose]();
        throw new XenError("ENOSPC", "no grant entries left for a ring");
      }
    }
    const channel = this.#domain.events.allocateUnbound(peer);
    this.#offer = {
      ring,
      // A ring is initialised before the backend can see it.
      frontRing: new FrontRing(bytesOf(ring), blkifLayout(this.#limits.protocol)),
      channel,
      maxSegments: segmentsFor(Math.min(allowed, this.#limits.maxIndirectSegments)),
    };
    await store.transaction(async (operations) => {
      const write = (key: string, value: string | number) =>
        operations.write(`${this.#device.path}/${key}`, String(value));
      if (order === 0) await write("ring-ref", ring.references[0]!);
      else {
        await write("ring-page-order", order);
        for (let page = 0; page < ring.count; page++) {
          await write(`ring-ref${page}`, ring.references[page]!);
        }
      }
      await write("event-channel", channel.port);
      await write("protocol", protocolKey(this.#limits.protocol));
      await write("feature-persistent", this.#limits.persistent ? 1 : 0);
      await this.#device.switchState(XenbusState.initialised, operations);
    });
    if (this.#otherendState === XenbusState.connected) this.#device.poke();
  }

  /** blkfront_connect: what the backend shows with Connected. Each key is read on its own. */
  async #connect(): Promise<void> {
    const store = this.#domain.store;
    const back = this.#device.otherendPath;
    const offer = this.#offer!;
    const number = (key: string) => readNumber(store, `${back}/${key}`, Number.MAX_SAFE_INTEGER);
    const flag = (key: string) => readFlag(store, `${back}/${key}`);
    const sectors = await number("sectors");
    const sectorSize = await number("sector-size");
    if (!sectors || !sectorSize || sectorSize % SECTOR_SIZE !== 0) {
      throw new XenError(
        "EINVAL",
        `${back} shows sectors=${sectors ?? "none"} sector-size=${sectorSize ?? "none"}`,
      );
    }
    const readOnly = (((await number("info")) ?? 0) & VDISK_READONLY) !== 0;
    const features: QueueFeatures = {
      maxSegments: offer.maxSegments,
      flush: await flag("feature-flush-cache"),
      barrier: await flag("feature-barrier"),
      discard: !readOnly && (await flag("feature-discard")),
      discardZeroes: await flag("discard-zeroes"),
    };
    const persistent = this.#limits.persistent && (await flag("feature-persistent"));
    const pool = PagePool.create(
      this.#domain,
      this.#device.otherendId,
      this.#limits.maxPoolPages,
      offer.maxSegments + 1,
      persistent,
    );
    if (pool === undefined)
      throw new XenError("ENOMEM", "no memory left for the pages of requests");
    const queue = new FrontendQueue({
      domain: this.#domain,
      ring: offer.frontRing,
      channel: offer.channel,
      pool,
      features,
      vdev: this.#vdev,
      onbroken: (reason) => this.#broken(reason),
    });
    const physical = await number("physical-sector-size");
    const negotiated: Negotiated = {
      protocol: protocolKey(this.#limits.protocol),
      ringPages: offer.ring.count,
      ringSlots: queue.slots,
      queues: 1,
      maxSegments: offer.maxSegments,
      indirect: offer.maxSegments > segmentsFor(0),
      persistent,
      flush: features.flush,
      barrier: features.barrier,
      discard: features.discard,
      sectorSize,
      physicalSectorSize: physical !== undefined && physical > sectorSize ? physical : sectorSize,
      readOnly,
      sectors,
    };
    this.#connection = { ring: offer.ring, pool, queue, features, negotiated };
    this.#info = this.#infoFor(negotiated, features, {
      granularity: (await number("discard-granularity")) ?? sectorSize,
      alignment: (await number("discard-alignment")) ?? 0,
      secure: await flag("discard-secure"),
    });
    await this.#device.switchState(XenbusState.connected);
    this.#connected.resolve();
  }

  #infoFor(
    negotiated: Negotiated,
    features: QueueFeatures,
    discard: { granularity: number; alignment: number; secure: boolean },
  ): BlockStoreInfo {
    const native = new Set<NativeFeature>(["flush"]);
    return {
      size: negotiated.sectors * SECTOR_SIZE,
      readOnly: negotiated.readOnly,
      block: {
        minimum: negotiated.sectorSize,
        preferred: Math.max(negotiated.physicalSectorSize, PAGE_SIZE),
        maximum: MAX_REQUEST_BYTES,
      },
      discard: features.discard ? { ...discard, zeroes: features.discardZeroes } : undefined,
      native,
      shareable: false,
      depth: negotiated.ringSlots,
      engine: "blkfront",
    };
  }

  /** The backend wrote Connected again: another size. */
  async #resized(): Promise<void> {
    const sectors = await readNumber(
      this.#domain.store,
      `${this.#device.otherendPath}/sectors`,
      Number.MAX_SAFE_INTEGER / SECTOR_SIZE,
    );
    const info = this.#info!;
    if (!sectors || sectors * SECTOR_SIZE === info.size) return;
    this.#info = { ...info, size: sectors * SECTOR_SIZE };
    for (const listener of this.#listeners) listener.resized?.(this.#info);
  }

  /** Our own end failed: there is no disk, or no longer one. */
  #fatal(reason: unknown): void {
    const error = reason instanceof Error ? reason : new XenError("EIO", String(reason));
    this.#connected.reject(error);
    this.#announce(error);
    this.#connection?.queue.fail(Errno.EIO);
  }

  #broken(reason: string): void {
    const error = new XenError("EPROTO", `${this.#device.path}: ${reason}; the disk is disabled`);
    this.#announce(error);
    void this.#device.fatal(error).catch(() => {});
  }

  /** Lets requests in flight end, closes the device with its backend, and takes every page back. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  /** Lets what is in flight end; a backend that answers nothing any more is given up. */
  async #finish(queue: FrontendQueue): Promise<void> {
    if (!(await this.#within(queue.idle()))) queue.fail(Errno.EIO);
    await queue.idle();
  }

  /** Whether a promise was fulfilled before a live backend would have seen to it. */
  async #within(promise: Promise<void>): Promise<boolean> {
    const late = Promise.withResolvers<boolean>();
    using _timer = this.#clock.after(CLOSE_TIMEOUT_MILLISECONDS, () => late.resolve(false));
    return await Promise.race([promise.then(() => true), late.promise]);
  }

  async #dispose(): Promise<void> {
    const connection = this.#connection;
    if (connection !== undefined) await this.#finish(connection.queue);
    if (this.#offer !== undefined && this.#device.state !== XenbusState.closed) {
      await this.#device.switchState(XenbusState.closing).catch(() => {});
      // The backend unmaps when it sees Closed, so that our pages are ours again.
      await this.#device.switchState(XenbusState.closed).catch(() => {});
      await this.#within(this.#otherendClosed.promise);
    }
    await this.#device[Symbol.asyncDispose]();
    this.#connection = undefined;
    connection?.queue[Symbol.dispose]();
    connection?.pool[Symbol.dispose]();
    if (connection === undefined) this.#offer?.channel[Symbol.dispose]();
    this.#offer?.ring[Symbol.dispose]();
    this.#listeners.clear();
  }
}

/** The text of the protocol key: native is what this machine's own headers mean. */
function protocolKey(protocol: FrontendLimits["protocol"]): string {
  if (protocol !== "native") return protocol;
  return process.arch === "arm64" || process.arch === "arm" ? "arm-abi" : "x86_64-abi";
}

function bytesOf(pages: OwnPages): Uint8Array {
  return pages.region.bytes.subarray(pages.start, pages.start + pages.count * PAGE_SIZE);
}
