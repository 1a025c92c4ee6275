/**
 * A frontend: the disk that a vbd shows. It is a BlockStore, so that whatever is written against that port works over a
 * ring; how it comes to have a backend, loses it and finds another is its life on xenbus, life.ts.
 *
 * Invariant: a request is checked before a ring sees it, and who breaks a rule of the disk is told so by its errno.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import type {
  BlockRequest,
  BlockStore,
  BlockStoreInfo,
  Extent,
  StoreListener,
} from "../../store/block-store.ts";
import { StoreError } from "../../store/errors.ts";
import type { Clock } from "../../util/clock.ts";
import { type Domain, XenError } from "../../xen/domain.ts";
import { vdevName } from "../../xen/vbd.ts";
import type { Negotiated } from "../features.ts";
import { brokenRule } from "./broken-rule.ts";
import { ORDERED } from "./completion.ts";
import type { FrontendCounters } from "./counters.ts";
import { pollWrite } from "./dump.ts";
import { type FrontendFigures, figuresOf } from "./figures.ts";
import { FrontendLife } from "./life.ts";
import type { BlockFrontendOptions, FrontendDevice, FrontendState } from "./options.ts";
import { copyOutstanding, type OutstandingRequest } from "./outstanding.ts";
import type { RingPages } from "./rings.ts";

export class BlockFrontend implements BlockStore {
  readonly #life: FrontendLife;
  readonly #domain: Domain;
  readonly #clock: Clock;

  /** Connects to the backend that the directory names; resolves with a disk. Rejects with what the backend said. */
  static async connect(
    domain: Domain,
    path: string,
    options: BlockFrontendOptions,
  ): Promise<BlockFrontend> {
    const life = await FrontendLife.connect(domain, path, options);
    return new BlockFrontend(life, domain, options.clock);
  }

  private constructor(life: FrontendLife, domain: Domain, clock: Clock) {
    this.#life = life;
    this.#domain = domain;
    this.#clock = clock;
  }

  get path(): string {
    return this.#life.path;
  }

  get info(): BlockStoreInfo {
    const { info } = this.#life;
    if (info === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return info;
  }

  get counters(): FrontendCounters {
    return this.#life.counters;
  }

  /** Of the last connection, where there is none now. */
  get negotiated(): Negotiated {
    return this.#life.negotiated;
  }

  /** What was negotiated, under the names that FreeBSD's sysctls and Linux's module parameters have. */
  get figures(): FrontendFigures {
    const { limits, trusted } = this.#life;
    return figuresOf(this.negotiated, limits, trusted);
  }

  get device(): FrontendDevice {
    const { vdev, connection } = this.#life;
    const { readOnly, cdrom, removable } = connection.device;
    return { vdev, name: vdevName(vdev), readOnly, cdrom, removable };
  }

  /** The pages of each ring; none while there is no connection. */
  get rings(): readonly RingPages[] {
    return this.#life.rings;
  }

  get ring(): RingPages {
    return this.#life.connection.offer.rings[0]!;
  }

  /** Data in it is not copied on its way to a backend that is trusted and keeps its grants. */
  allocate(byteLength: number): MemoryRegion | undefined {
    return this.#life.clientMemory.allocate(byteLength);
  }

  submit(request: BlockRequest): void {
    const errno = brokenRule(request, this.#life.info);
    if (errno !== 0) this.#life.dispatcher.refuse(request, errno);
    else this.#life.dispatcher.submit(request);
  }

  /** As `submit`, for a write that happens after all that were submitted before it and before all that are submitted
   * later (FreeBSD's BIO_ORDERED): as a barrier where there is one, else alone on the rings. */
  submitOrdered(request: BlockRequest): void {
    request.flags |= ORDERED;
    this.submit(request);
  }

  /** Writes without events, promises or the event loop: for the last words of a process that is going down (xbd_dump). What
   * is in flight is awaited first. The backend is to be on another thread, or to finish within its kicks. Throws
   * XenError("EIO" | "EBUSY"), with EBUSY after `timeoutMilliseconds`. */
  dumpWrite(offset: number, bytes: Uint8Array, timeoutMilliseconds: number = 30_000): void {
    const { queues } = this.#life.connection;
    const deadline = this.#clock.now() + timeoutMilliseconds;
    pollWrite({
      queues,
      reactor: this.#domain.reactor,
      late: () => this.#clock.now() > deadline,
      check: (request) => brokenRule(request, this.#life.info),
      offset,
      bytes,
    });
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
    return this.#life.listeners.subscribe(listener);
  }

  /** What is on the ring cannot be called back: it is awaited. */
  async cancel(): Promise<void> {
    await this.#life.dispatcher.cancel();
  }

  /** Says that somebody uses the disk: until everybody has said that they do no more, a backend that wants to close has to
   * wait. */
  hold(): Disposable {
    return this.#life.hold();
  }

  /** New requests wait until the holder lets go. Resolves when what was sent before has been answered: the disk is quiet
   * then, for a copy of it, say. */
  async freeze(): Promise<Disposable> {
    const { dispatcher } = this.#life;
    const held = dispatcher.hold();
    await dispatcher.ringsIdle();
    return held;
  }

  /** A copy of what was submitted and has not ended, in an order in which it may be done again. */
  outstanding(): OutstandingRequest[] {
    return this.#life.dispatcher.outstanding().map(copyOutstanding);
  }

  get state(): FrontendState {
    return this.#life.state;
  }

  /** The domain dies: everything ends with the error's errno, nothing is said to the backend or in the store, and pages
   * are let go of. Idempotent; a disposal. */
  abandon(error: Error): Promise<void> {
    return this.#life.abandon(error);
  }

  /** Before the domain is suspended: sends nothing more. What is in flight need not be answered (Linux); with a time, it is
   * waited for, and XenError("EBUSY") calls the suspension off (FreeBSD, 30 seconds). */
  suspend(waitMilliseconds: number = 0): Promise<void> {
    return this.#life.suspend(waitMilliseconds);
  }

  /** After the domain was resumed, or a backend moved: event channels and grants are made anew with the backend that the
   * directory names now, and what was in flight is sent again. Resolves when it is connected. A cancelled suspension
   * goes on with what there is. */
  resume(options: { readonly cancelled?: boolean } = {}): Promise<void> {
    return this.#life.resume(options);
  }

  /** Lets requests in flight end, closes the device with its backend, and takes every page back. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#life[Symbol.asyncDispose]();
  }
}
