/**
 * The life of a frontend on xenbus: the states of both ends, and the connections that come and go (xen-blkfront.c:
 * blkfront_probe, talk_to_blkback, blkback_changed, blkfront_connect, blkfront_resume; FreeBSD's xbd_attach,
 * xbd_initialize, xbd_connect, xbd_suspend, xbd_resume).
 *
 * Invariants: what the backend says is followed one state at a time; whatever was granted is taken back before the
 * memory is used again; a request that was submitted is completed once, over however many connections.
 */
import type { BlockRequest, BlockStoreInfo } from "../../store/block-store.ts";
import { Errno, errnoOf } from "../../store/errors.ts";
import { StoreListeners } from "../../store/listeners.ts";
import { type Domain, XenError } from "../../xen/domain.ts";
import {
  findOtherend,
  parseState,
  readNumber,
  stateName,
  XenbusDevice,
  XenbusState,
} from "../../xen/xenbus.ts";
import { dialects, type FrontendLimits, type Negotiated } from "../features.ts";
import { ClientMemory } from "./client-memory.ts";
import { Connection, protocolKey } from "./connection.ts";
import { type FrontendCounters, frontendCounters } from "./counters.ts";
import { Dispatcher } from "./dispatcher.ts";
import { type Device, readDevice, readRingLimits, readSize, readVdev } from "./negotiation.ts";
import { type BlockFrontendOptions, type FrontendState, limitsOf } from "./options.ts";
import type { QueueOwner } from "./queue.ts";
import { RingOffer, type RingPages } from "./rings.ts";

/** A backend that does not answer Closing is left behind after this: it may be dead. */
const CLOSE_TIMEOUT_MILLISECONDS = 5000;

/** What BlockFrontend says of hold, suspend, resume, abandonment and disposal is done here. */
export class FrontendLife implements QueueOwner, AsyncDisposable {
  readonly vdev: number;
  readonly limits: FrontendLimits;
  /** The backend may see what a page held before. */
  readonly trusted: boolean;
  readonly dispatcher: Dispatcher;
  readonly listeners: StoreListeners = new StoreListeners();
  readonly counters: FrontendCounters = frontendCounters();
  readonly clientMemory: ClientMemory;
  readonly #domain: Domain;
  readonly #options: BlockFrontendOptions;
  #device: XenbusDevice;
  #connected = Promise.withResolvers<void>();
  #otherendClosed = Promise.withResolvers<void>();
  #offer: RingOffer | undefined = undefined;
  #connection: Connection | undefined = undefined;
  #negotiated: Negotiated | undefined = undefined;
  /** What the last backend may still map. */
  #former = new DisposableStack();
  /** The backend may be connected to rings that we no longer have: it is to close first. */
  #stale: boolean;
  /** From resume() until there is a connection again. */
  #resuming = false;
  #info: BlockStoreInfo | undefined = undefined;
  #otherendState: XenbusState = XenbusState.unknown;
  #error: Error | undefined = undefined;
  #users = 0;
  #disposal: Promise<void> | undefined = undefined;

  /** Resolves when connected. */
  static async connect(
    domain: Domain,
    path: string,
    options: BlockFrontendOptions,
  ): Promise<FrontendLife> {
    options.signal?.throwIfAborted();
    const end = await findOtherend(domain, path, "frontend");
    const device = new XenbusDevice(domain, end);
    let vdev: number;
    try {
      vdev = await readVdev(domain.store, path);
    } catch (error) {
      await device.fatal(error);
      throw error;
    }
    const trusted = (await readNumber(domain.store, `${path}/trusted`)) !== 0;
    const before = parseState(await domain.store.read(`${path}/state`));
    const life = new FrontendLife(device, vdev, trusted, before, options);
    const abort = () => life.#connected.reject(options.signal?.reason);
    options.signal?.addEventListener("abort", abort, { once: true });
    try {
      // It may have been given up while the store was asked.
      options.signal?.throwIfAborted();
      if (before !== XenbusState.initialising) await device.switchState(XenbusState.initialising);
      await life.#follow();
      await life.#connected.promise;
      return life;
    } catch (error) {
      await life[Symbol.asyncDispose]();
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", abort);
    }
  }

  private constructor(
    device: XenbusDevice,
    vdev: number,
    trusted: boolean,
    before: XenbusState,
    options: BlockFrontendOptions,
  ) {
    this.#domain = device.domain;
    this.clientMemory = new ClientMemory(this.#domain);
    this.#device = device;
    this.vdev = vdev;
    this.#options = options;
    this.limits = limitsOf(options);
    this.trusted = trusted && this.limits.trusted;
    // A kernel before ours (kexec, or a boot loader that did not close) left its state there.
    this.#stale = before >= XenbusState.initialised && before <= XenbusState.closing;
    this.dispatcher = new Dispatcher(this.#domain.reactor, this.counters.freezes);
    this.#connected.promise.catch(() => {});
  }

  get path(): string {
    return this.#device.path;
  }

  /** The disk as it was last seen; undefined before the first connection. */
  get info(): BlockStoreInfo | undefined {
    return this.#info;
  }

  /** The connection there is. Throws XenError("ENXIO") where there is none. */
  get connection(): Connection {
    if (this.#connection === undefined) throw new XenError("ENXIO", "the vbd is not connected");
    return this.#connection;
  }

  get negotiated(): Negotiated {
    return this.#connection?.negotiated ?? this.#negotiated ?? this.connection.negotiated;
  }

  get rings(): readonly RingPages[] {
    return this.#connection?.offer.rings ?? [];
  }

  get state(): FrontendState {
    if (this.#error !== undefined || this.#disposal !== undefined) return "failed";
    if (this.dispatcher.suspended) return "suspended";
    return this.#connection === undefined ? "away" : "connected";
  }

  hold(): Disposable {
    this.#users++;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        if (--this.#users === 0 && this.#otherendState === XenbusState.closing) this.#device.poke();
      },
    };
  }

  async suspend(waitMilliseconds: number = 0): Promise<void> {
    this.dispatcher.suspend();
    if (
      waitMilliseconds === 0 ||
      (await this.#within(this.dispatcher.drained(), waitMilliseconds))
    ) {
      return;
    }
    this.dispatcher.resume();
    throw new XenError("EBUSY", `${this.path}: requests are not answered; not suspended`);
  }

  async resume(options: { readonly cancelled?: boolean } = {}): Promise<void> {
    if (options.cancelled === true) {
      this.dispatcher.resume();
      this.#device.poke();
      return;
    }
    if (this.#error !== undefined) throw this.#error;
    const { path, otherendPath } = this.#device;
    await this.#device[Symbol.asyncDispose]();
    this.#resuming = true;
    this.#drop();
    this.#connected = Promise.withResolvers();
    // Whoever waits for it is told below.
    this.#connected.promise.catch(() => {});
    try {
      const end = await findOtherend(this.#domain, path, "frontend");
      this.#device = new XenbusDevice(this.#domain, end);
      this.#stale = end.otherendPath === otherendPath;
      await this.#device.switchState(XenbusState.initialising);
      this.dispatcher.resume();
      await this.#follow();
    } catch (error) {
      this.#fatal(error);
    }
    await this.#connected.promise;
  }

  #follow(): Promise<void> {
    return this.#device.follow(
      (state) => this.#otherend(state),
      (error) => this.#fatal(error),
    );
  }

  #announce(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.listeners.failed(error);
  }

  /** blkback_changed of xen-blkfront.c. */
  async #otherend(state: XenbusState): Promise<void> {
    this.#otherendState = state;
    if (this.#error !== undefined) {
      if (state >= XenbusState.closing || state === XenbusState.unknown) await this.#gone(state);
      return;
    }
    // FreeBSD's XBD_STATE_SUSPENDED: resume() looks afresh.
    if (this.dispatcher.suspended && this.#disposal === undefined) return;
    switch (state) {
      case XenbusState.initialising:
        if (this.#connection !== undefined) await this.#lost(state);
        return;
      case XenbusState.initWait:
        if (this.#connection !== undefined) await this.#lost(state);
        if (this.#error === undefined && this.#offer === undefined) await this.#initialise();
        return;
      case XenbusState.initialised:
        if (this.#offer === undefined) await this.#initialise();
        return;
      case XenbusState.connected:
        if (this.#stale) await this.#device.switchState(XenbusState.closed);
        else if (this.#offer === undefined) await this.#initialise();
        else if (this.#connection === undefined) await this.#connect();
        else await this.#resized();
        return;
      case XenbusState.closing:
        await this.#closing();
        return;
      case XenbusState.closed:
      case XenbusState.unknown:
        await this.#lost(state);
    }
  }

  /** Whether a backend that goes away is expected to come again. */
  async #mayReturn(): Promise<boolean> {
    if (this.#disposal !== undefined) return false;
    const wanted = this.#info !== undefined && this.#options.reconnect === true;
    if (!wanted && !this.#stale && !this.#resuming) return false;
    const online = await readNumber(
      this.#domain.store,
      `${this.#device.otherendPath}/online`,
    ).catch(() => undefined);
    return online !== 0;
  }

  /** The backend wants to close. */
  async #closing(): Promise<void> {
    if (await this.#mayReturn()) {
      this.#drop();
      await this.#device.switchState(XenbusState.closed);
      return;
    }
    if (this.#users > 0 && this.#options.forceClose !== true && this.#connection !== undefined) {
      const text = `EBUSY ${this.path}: Device in use; refusing to close`;
      await this.#domain.store.write(`${this.path}/error`, text);
      return;
    }
    await this.#gone(XenbusState.closing);
  }

  /** The backend let go of our rings, or was begun anew. */
  async #lost(state: XenbusState): Promise<void> {
    if (!(await this.#mayReturn())) {
      await this.#gone(state);
      return;
    }
    this.#drop();
    // A backend that closed waits for it.
    if (this.#device.state !== XenbusState.initialising || state === XenbusState.closed) {
      await this.#device.switchState(XenbusState.initialising);
    }
  }

  /** What was on the rings waits for the next ones. The pages are taken back when the backend has let go of them, which
   * it has when it wants our rings again. */
  #drop(): void {
    this.dispatcher.detach();
    this.#negotiated = this.#connection?.negotiated ?? this.#negotiated;
    if (this.#connection !== undefined) this.#former.use(this.#connection);
    else if (this.#offer !== undefined) this.#former.use(this.#offer);
    this.#connection = undefined;
    this.#offer = undefined;
  }

  async #gone(state: XenbusState): Promise<void> {
    if (this.#offer === undefined && this.#info === undefined && state !== XenbusState.closing) {
      return;
    }
    const said = await this.#domain.store
      .read(`${this.#device.otherendPath}/error`)
      .catch(() => undefined);
    const why = said === undefined ? `went to ${stateName(state)}` : `failed: ${said}`;
    const error = new XenError("EIO", `${this.#device.otherendPath} ${why}`);
    this.#connected.reject(error);
    if (state !== XenbusState.closing) this.#otherendClosed.resolve();
    if (this.#disposal !== undefined) return;
    this.#announce(error);
    this.dispatcher.fail(Errno.EIO);
    const ours = this.#device.state;
    if (ours !== XenbusState.closing && ours !== XenbusState.closed) {
      await this.#device.switchState(XenbusState.closing);
    }
    if (state === XenbusState.closing) await this.#device.switchState(XenbusState.closed);
  }

  /** talk_to_blkback: the rings' pages, their ports, and what we want; then Initialised. */
  async #initialise(): Promise<void> {
    if (this.#disposal !== undefined) return;
    const { store } = this.#domain;
    const { path, otherendPath, otherendId } = this.#device;
    this.#former.dispose();
    this.#former = new DisposableStack();
    this.clientMemory.beginFor(otherendId);
    this.#stale = false;
    this.#otherendClosed = Promise.withResolvers();
    const { protocol, persistent, dialect } = this.limits;
    const limits = await readRingLimits(store, otherendPath, this.limits);
    if (this.#disposal !== undefined) return;
    const offer = RingOffer.allocate(this.#domain, otherendId, limits, protocol);
    this.#offer = offer;
    await store.transaction(async (operations) => {
      await offer.write(operations, path);
      await operations.write(`${path}/protocol`, protocolKey(protocol));
      await operations.write(`${path}/feature-persistent`, persistent ? "1" : "0");
      if (dialects[dialect].segments === "sector-size") {
        await operations.write(`${path}/feature-large-sector-size`, "1");
      }
      await this.#device.switchState(XenbusState.initialised, operations);
    });
    if (this.#otherendState === XenbusState.connected) this.#device.poke();
  }

  /** blkfront_connect: what the backend shows with Connected. */
  async #connect(): Promise<void> {
    if (this.#disposal !== undefined) return;
    const { otherendPath, otherendId } = this.#device;
    const device: Device = await readDevice(this.#domain.store, otherendPath, this.limits.dialect);
    if (this.#disposal !== undefined) return;
    const connection = new Connection({
      domain: this.#domain,
      clock: this.#options.clock,
      peer: otherendId,
      offer: this.#offer!,
      device,
      limits: this.limits,
      trusted: this.trusted,
      vdev: this.vdev,
      clientMemory: this.clientMemory,
      counters: this.counters,
      owner: this,
    });
    this.#connection = connection;
    this.#resuming = false;
    const before = this.#info;
    this.#info = connection.info;
    await this.#device.switchState(XenbusState.connected);
    this.dispatcher.attach(connection.queues, connection.features);
    if (before !== undefined && before.size !== this.#info.size) this.listeners.resized(this.#info);
    this.#connected.resolve();
  }

  /** The backend wrote Connected again: another size. */
  async #resized(): Promise<void> {
    const info = this.#info!;
    const { dialect } = this.limits;
    const { otherendPath } = this.#device;
    const size = await readSize(this.#domain.store, otherendPath, info.block.minimum, dialect);
    if (size === undefined || size === info.size) return;
    this.#info = { ...info, size };
    this.listeners.resized(this.#info);
  }

  quiet(): void {
    this.dispatcher.quiet();
  }

  unordered(request: BlockRequest): void {
    this.dispatcher.unordered(request);
  }

  /** The backend took back an operation that it had offered. */
  withdrawn(): void {
    const info = this.#info!;
    if (info.discard === undefined || this.#connection?.features.discard !== false) return;
    this.#info = { ...info, discard: undefined };
    this.listeners.resized(this.#info);
  }

  /** Our own end failed: there is no disk, or no longer one. */
  #fatal(reason: unknown): void {
    const error = reason instanceof Error ? reason : new XenError("EIO", String(reason));
    this.#connected.reject(error);
    this.#announce(error);
    this.dispatcher.fail(Errno.EIO);
  }

  broken(reason: string): void {
    const error = new XenError(
      "EPROTO",
      `${this.path}: the backend ${reason}; the disk is disabled`,
    );
    this.dispatcher.fail(Errno.EIO);
    this.#announce(error);
    void this.#device.fatal(error).catch(() => {});
  }

  abandon(error: Error): Promise<void> {
    this.#disposal ??= this.#abandon(error);
    return this.#disposal;
  }

  async #abandon(error: Error): Promise<void> {
    this.#connected.reject(error);
    this.#announce(error);
    this.dispatcher.fail(errnoOf(error));
    this.#drop();
    this.#former.dispose();
    this.clientMemory[Symbol.dispose]();
    // Not awaited: a domain that does not run hears no answer of the store, and one that ended has none.
    void this.#device[Symbol.asyncDispose]().catch(() => {});
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  /** Whether a promise was fulfilled in time. */
  async #within(promise: Promise<void>, milliseconds: number): Promise<boolean> {
    const late = Promise.withResolvers<boolean>();
    using _timer = this.#options.clock.after(milliseconds, () => late.resolve(false));
    return await Promise.race([promise.then(() => true), late.promise]);
  }

  async #dispose(): Promise<void> {
    // Nobody answers what waits for a backend; one that answers nothing any more is given up.
    const answers = this.#connection !== undefined && !this.dispatcher.stopped;
    if (answers) await this.#within(this.dispatcher.idle(), CLOSE_TIMEOUT_MILLISECONDS);
    this.dispatcher.fail(Errno.EIO);
    const known = this.#offer !== undefined || this.#info !== undefined;
    let said = this.#device.state === XenbusState.closed;
    if (known && !said) {
      await this.#device.switchState(XenbusState.closing).catch(() => {});
      said = await this.#device.switchState(XenbusState.closed).then(
        () => true,
        () => false,
      );
    }
    // The backend unmaps when it sees Closed, so that our pages are ours again.
    if (said && this.#offer !== undefined) {
      await this.#within(this.#otherendClosed.promise, CLOSE_TIMEOUT_MILLISECONDS);
    }
    await this.#device[Symbol.asyncDispose]();
    this.#drop();
    this.#former.dispose();
    this.clientMemory[Symbol.dispose]();
  }
}
