/**
 * A machine without a hypervisor: domains that share memory, on this thread, in workers and in child processes, and
 * the xenstore between them.
 *
 * The machine makes every domain's memory, so that a domain may die in any way and its peers keep what they mapped.
 * It is also what Xen is when a domain dies: it takes back the marks of its mappings and unbinds its ports.
 */
import { MessageChannel, type MessagePort } from "node:worker_threads";
import { ffi } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import type { EventDescriptor } from "../../io/poller.ts";
import { type Reactor, threadReactor } from "../../io/reactor.ts";
import { createSharedMemory } from "../../io/shared-memory.ts";
import { PAGE_SIZE, XenError } from "../domain.ts";
import { XenStoreClient } from "../xenstore/client.ts";
import { XenStoreDaemon, type XenStoreStateOptions } from "../xenstore/daemon.ts";
import { openDomainRing } from "../xenstore/ring-service.ts";
import { listen, openProcessBell, returnThreadBell, takeThreadBell } from "./bell.ts";
import { revoke } from "./death.ts";
import { EmbeddedDomain } from "./domain.ts";
import { DomainMemory } from "./domain-memory.ts";
import { type DomainLimits, shapeOf } from "./layout.ts";
import { MachineFolder } from "./machine-folder.ts";
import { NeighbourMap, RemoteNeighbour } from "./neighbours.ts";
import { buildStoreRing, STORE_DOMID } from "./store-ring.ts";
import type { Announcement, DomainRecord, DomainTicket } from "./ticket.ts";

export interface MachineOptions {
  /** Folder of shared domains; made with mode 0700 when it is first needed, under the system's temporary folder where
   * none is named. */
  readonly directory?: string;
  /** Of the domains that live on this thread; the thread's own where none is given. */
  readonly reactor?: Reactor;
  /** Where the xenstore outlives the machine. Its domains do not: of those that an earlier machine had, nothing is left
   * that they own. */
  readonly state?: XenStoreStateOptions;
  /** Pages of a domain, where it does not say; DEFAULT_MEMORY_PAGES. */
  readonly memoryPages?: number;
}

export interface DomainOptions extends Partial<DomainLimits> {
  /** All pages of the domain's memory, its tables included. */
  readonly memoryPages?: number;
  /** Whether other processes can reach it. Needs foreign calls. A process domain reaches shared domains only. */
  readonly shared?: boolean;
  /** How it reaches the xenstore: by the ring in its memory, as a guest of Xen does, or (the default) by what is at hand:
   * a call, a MessagePort, a Unix socket. */
  readonly xenstore?: "ring";
}

/** 64 MiB of address space; memory is used as pages are touched. */
export const DEFAULT_MEMORY_PAGES = 16384;

/** As many as a Linux guest has by default (64 frames): 16 queues of 32 requests of 64 segments. */
export const DEFAULT_GRANT_ENTRIES = 32768;

/** The daemon's own domain maps pages of others and has none to give. */
const STORE_MEMORY_PAGES = 16;

/** A domain as its machine keeps it. */
interface Resident {
  readonly memory: DomainMemory;
  /** The eventfd or FIFO that wakes it from elsewhere. */
  bell: EventDescriptor | undefined;
  /** Its memory is a memfd, found in the machine's folder. */
  readonly shared: boolean;
  /** Its port to the xenstore; 0 where it has no ring. */
  readonly storePort: number;
  /** Set where it lives on this thread. */
  domain?: EmbeddedDomain;
  shutdown?: ShutdownReason | undefined;
  /** A domain of this thread listens to other threads once there are some. */
  listening: boolean;
  /** Disposed when the domain has died. */
  readonly ends: AsyncDisposableStack;
  death?: Promise<void>;
}

/** SHUTDOWN_* of sched.h: why a domain does not run any more. */
export const ShutdownReason = { poweroff: 0, reboot: 1, suspend: 2, crash: 3 } as const;
export type ShutdownReason = keyof typeof ShutdownReason;

export class EmbeddedMachine implements AsyncDisposable {
  readonly xenstore: XenStoreDaemon;
  readonly reactor: Reactor;
  readonly #folder: MachineFolder;
  readonly #memoryPages: number;
  readonly #neighbours = new NeighbourMap();
  readonly #residents = new Map<number, Resident>();
  /** Numbers of domains that are being made. */
  readonly #coming = new Set<number>();
  /** One for each worker that was given a ticket. */
  readonly #announcements = new Set<MessagePort>();
  #threads = false;
  #storeDomain: Promise<unknown> | undefined;

  /** Rejects with XenError where the xenstore's state cannot be had. */
  static async create(options: MachineOptions = {}): Promise<EmbeddedMachine> {
    return new EmbeddedMachine(options);
  }

  private constructor(options: MachineOptions) {
    this.xenstore = new XenStoreDaemon({
      openRing: (domid, port) => {
        const store = this.#residents.get(STORE_DOMID)?.domain;
        return store === undefined ? undefined : openDomainRing(store, domid, port);
      },
      // Asked of those that an earlier machine had, before there is any here.
      ...(options.state && { state: { ...options.state, isAlive: () => false } }),
    });
    this.reactor = options.reactor ?? threadReactor();
    this.#folder = new MachineFolder(options.directory);
    this.#memoryPages = options.memoryPages ?? DEFAULT_MEMORY_PAGES;
  }

  /** The folder of shared domains; asking makes it. */
  get directory(): string {
    return this.#folder.path;
  }

  /** A domain that lives on this thread, until it is disposed or destroyed. Rejects with XenError("EEXIST") when the
   * number is taken, and RangeError when the options leave no room. */
  async createDomain(domid: number, options: DomainOptions = {}): Promise<EmbeddedDomain> {
    const resident = await this.#make(domid, options);
    const { memory, bell, shared, storePort } = resident;
    const ring = options.xenstore === "ring";
    const store = ring ? undefined : new XenStoreClient(this.xenstore.connect(domid));
    const last = new AsyncDisposableStack();
    last.defer(async () => {
      // A domain that is disposed has died, too.
      if (resident.death === undefined) await this.destroyDomain(domid);
    });
    const neighbours = this.#neighbours;
    const domain = new EmbeddedDomain(memory.retain(), neighbours, store, this.reactor, last);
    resident.domain = domain;
    this.#neighbours.set(domid, domain);
    if (ring) this.xenstore.introduce(domid, storePort);
    if (shared) domain.onEnd(listen(domain, bell));
    else if (this.#threads) this.#listenToThreads(resident);
    this.#announce({ came: this.#record(resident) });
    return domain;
  }

  /** Makes a domain that a worker or a child process becomes by joinMachine(ticket). It exists, and keeps what peers
   * do with it, until it is destroyed: whoever started the worker or process does that when it has ended. */
  async domainTicket(
    domid: number,
    where: "worker" | "process",
    options: DomainOptions = {},
  ): Promise<DomainTicket> {
    const shared = where === "process" || options.shared === true;
    const resident = await this.#make(domid, { ...options, shared });
    const { memory, ends, storePort } = resident;
    if (!shared) resident.bell = this.#threadBell(resident);
    this.#neighbours.set(domid, new RemoteNeighbour(memory.retain(), resident.bell, false));
    if (options.xenstore === "ring") this.xenstore.introduce(domid, storePort);
    this.#announce({ came: this.#record(resident) });
    if (where === "process") return { where, domid, directory: this.directory, transferList: [] };
    this.#threads = true;
    for (const other of this.#residents.values()) this.#listenToThreads(other);
    const { port1: ours, port2: announcements } = new MessageChannel();
    this.#announcements.add(ours);
    ours.unref();
    ends.defer(() => {
      this.#announcements.delete(ours);
      ours.close();
    });
    const { port1: served, port2: xenstore } = new MessageChannel();
    ends.use(this.xenstore.accept(served, domid));
    return {
      where,
      self: this.#record(resident),
      others: [...this.#residents.values()]
        .filter((other) => other !== resident)
        .map((other) => this.#record(other)),
      announcements,
      xenstore,
      transferList: [announcements, xenstore],
    };
  }

  /** SCHEDOP_shutdown: the domain runs no more, but is still there with its memory, ports and mappings; watches of
   * @releaseDomain hear of it. The first reason stays. What runs elsewhere is not stopped by it. Throws
   * XenError("ENOENT") where there is no such domain. */
  shutdownDomain(domid: number, reason: ShutdownReason): void {
    const resident = this.#resident(domid);
    if (resident.shutdown !== undefined) return;
    resident.shutdown = reason;
    resident.domain?.pause();
    this.xenstore.shutdown(domid);
  }

  /** XEN_DOMCTL_resumedomain: a domain that was shut down runs on as it was, with the events that came meanwhile. Throws
   * XenError("ENOENT"). */
  resumeDomain(domid: number): void {
    const resident = this.#resident(domid);
    resident.shutdown = undefined;
    this.xenstore.resume(domid);
    resident.domain?.unpause();
  }

  /** Why the domain does not run; undefined while it does. Throws XenError("ENOENT"). */
  shutdownReason(domid: number): ShutdownReason | undefined {
    return this.#resident(domid).shutdown;
  }

  #resident(domid: number): Resident {
    const resident = this.#residents.get(domid);
    if (resident === undefined) throw new XenError("ENOENT", `there is no domain ${domid}`);
    return resident;
  }

  /** Ends a domain, wherever it lives; what ran it elsewhere must have ended before. Nothing happens where there is
   * none. */
  async destroyDomain(domid: number): Promise<void> {
    const resident = this.#residents.get(domid);
    if (resident === undefined) return;
    // In a later step, so that what the burial calls finds `death` set.
    resident.death ??= Promise.resolve().then(() => this.#bury(domid, resident));
    await resident.death;
  }

  async #bury(domid: number, resident: Resident): Promise<void> {
    await resident.domain?.[Symbol.asyncDispose]();
    resident.memory.markDead();
    for (const other of this.#residents.values()) {
      if (other === resident) continue;
      revoke(domid, other.memory);
      other.domain?.grants.forget(domid);
    }
    this.#neighbours.delete(domid);
    this.#announce({ ended: domid });
    try {
      await resident.ends.disposeAsync();
    } finally {
      // Only now may the number be used again: its folder is gone.
      this.#residents.delete(domid);
    }
  }

  async #make(domid: number, options: DomainOptions): Promise<Resident> {
    if (this.#residents.has(domid) || this.#coming.has(domid)) {
      throw new XenError("EEXIST", `domain ${domid} exists already`);
    }
    const { memoryPages = this.#memoryPages } = options;
    const shape = shapeOf(domid, memoryPages, { grantEntries: DEFAULT_GRANT_ENTRIES, ...options });
    const shared = options.shared === true;
    this.#coming.add(domid);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => void this.#coming.delete(domid));
    const ring = options.xenstore === "ring";
    if (ring) await this.#needStoreDomain();
    const ends = undo.use(new AsyncDisposableStack());
    const byteLength = memoryPages * PAGE_SIZE;
    const made = shared ? createSharedMemory(`domain-${domid}`, byteLength) : undefined;
    const region = made?.region ?? allocateRegion(byteLength);
    const memory = DomainMemory.format(region, shape, made?.descriptor);
    ends.defer(() => memory.release());
    const storePort = ring ? buildStoreRing(memory) : 0;
    let bell: EventDescriptor | undefined;
    if (made !== undefined) {
      const paths = await this.#folder.addDomain(domid, made.descriptor);
      ends.defer(() => this.#folder.removeDomain(domid));
      bell = ends.use(openProcessBell(paths.events));
      ends.use(await this.xenstore.listen(paths.xenstore, { domid }));
    }
    if (domid !== STORE_DOMID) {
      this.xenstore.introduce(domid);
      ends.defer(() => this.xenstore.release(domid));
    }
    const listening = shared;
    const resident: Resident = { memory, bell, shared, storePort, listening, ends: ends.move() };
    this.#residents.set(domid, resident);
    return resident;
  }

  /** The domain whose grants and events serve the rings: nobody is told of it. */
  async #needStoreDomain(): Promise<void> {
    const options = { memoryPages: STORE_MEMORY_PAGES, grantEntries: 512 };
    const shared = ffi() !== undefined;
    this.#storeDomain ??= this.createDomain(STORE_DOMID, { ...options, shared });
    await this.#storeDomain;
  }

  /** A domain of this thread that no other process reaches begins to listen to other threads. */
  #listenToThreads(resident: Resident): void {
    const { domain } = resident;
    if (domain === undefined || resident.listening) return;
    resident.listening = true;
    resident.bell = this.#threadBell(resident);
    domain.onEnd(listen(domain, resident.bell));
  }

  #threadBell(resident: Resident): EventDescriptor | undefined {
    const bell = takeThreadBell();
    resident.ends.defer(() => returnThreadBell(bell));
    return bell;
  }

  #record({ memory, bell, shared }: Resident): DomainRecord {
    const { domid } = memory.shape;
    if (shared) return { domid, directory: this.directory };
    return { domid, memory: memory.region.bytes, bell: bell?.descriptor };
  }

  #announce(announcement: Announcement): void {
    for (const port of this.#announcements) port.postMessage(announcement);
  }

  /** Ends every domain, then the xenstore and the folder. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const domid of this.#residents.keys()) await this.destroyDomain(domid);
    await this.xenstore[Symbol.asyncDispose]();
    this.#folder[Symbol.dispose]();
  }
}
