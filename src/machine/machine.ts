/**
 * A machine without Xen, ready to use: domains that share memory, a xenstore that anyone may look at, and virtual block
 * devices between them. It plays the toolstack: it writes the nodes, starts both ends, and removes them at the end.
 */
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import {
  type BackendEvent,
  type BackendLimits,
  BlockFrontend,
  type FrontendLimits,
  type OutstandingRequest,
} from "../block/index.ts";
import { type Reactor, threadReactor } from "../io/reactor.ts";
import type { BlockStore, EngineChoice, StoreSpec } from "../store/block-store.ts";
import { openStore } from "../store/registry.ts";
import { systemClock } from "../util/clock.ts";
import { type Domain, XenError } from "../xen/domain.ts";
import { type DomainOptions, EmbeddedMachine } from "../xen/embedded/index.ts";
import {
  askToClose,
  createDomainNodes,
  recreateVbd,
  removeVbd,
  type VbdDescription,
  vbdPaths,
} from "../xen/toolstack.ts";
import { type BackendKind, parseVdev, vdevName } from "../xen/vbd.ts";
import { XenStoreClient } from "../xen/xenstore/client.ts";
import { AttachedDisk, type Link } from "./attached-disk.ts";
import { type BackendLink, localBackend, remoteBackend } from "./backend-link.ts";
import { Guest } from "./guest.ts";
import { inherit } from "./inherited-requests.ts";
import { guarded, readerOf, writeAnswer } from "./migrate.ts";
import { paramsOf } from "./params.ts";
import { RestartableBackend } from "./restartable-backend.ts";
import { type Nursery, type RestoreOptions, restoreGuest } from "./restore.ts";
import { RecordReader } from "./save-format.ts";

export interface MachineOptions {
  /** Folder of sockets and shared memory; a fresh one of mode 0700 under the system's temporary folder if absent. */
  readonly directory?: string;
  /** Path of the xenstore socket; `xenstored.sock` in the directory if absent. */
  readonly xenstoreSocket?: string;
  /** The thread's own if absent: then the stores that openStore() opens fit. */
  readonly reactor?: Reactor;
  /** File in which the xenstore outlives the machine (docs/xenstore.md): what people and programs wrote there. Domains of
   * an earlier machine are no more, and neither is what toolstacks write for them: /local/domain, /libxl and /vm. */
  readonly state?: string;
  /** What a person may want to know of that file. */
  readonly onStateNote?: (line: string) => void;
  /** What happens to vbds that a person may want to know. */
  readonly ontrace?: (event: BackendEvent) => void;
}

export interface AttachOptions {
  /** xvda, xvdb1, sda, 51712 ... */
  readonly vdev: string;
  /** "thread" if absent. Elsewhere the disk is given as a StoreSpec, which is opened there. */
  readonly link?: Link;
  readonly readOnly?: boolean;
  /** What the toolstack says of the device; "vbd" if the kind is absent. */
  readonly cdrom?: boolean;
  readonly removable?: boolean;
  readonly kind?: BackendKind;
  readonly engine?: EngineChoice;
  /** Where the frontend is. If absent, a guest that the machine makes for all such disks. */
  readonly guest?: Guest;
  /** A disk whose backend dies or is restarted comes back, and its requests wait for it; otherwise they fail. */
  readonly reconnect?: boolean;
  readonly frontend?: Partial<FrontendLimits>;
  readonly backend?: Partial<BackendLimits>;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
}

export interface GuestOptions extends DomainOptions {
  /** Of the `name` node, and no other guest's; "guest-N" if absent. */
  readonly name?: string;
}

/** Whom the nodes that a toolstack wrote are about is no more. */
async function forgetDomains({ xenstore }: EmbeddedMachine): Promise<void> {
  await using store = new XenStoreClient(xenstore.connect(DOM0));
  for (const path of ["/local/domain", "/libxl", "/vm"]) await store.remove(path);
}

/** A domain's name is shown in lists and is part of nothing else. */
const MAX_NAME_CHARACTERS = 128;

/** Domain 0 has the backends of this thread, as on a host. */
const DOM0 = 0;
/** Pages that a ring's backend keeps mapped, where nobody says: four times as many as on a host, for they cost nothing here
 * but the note of where each is. 16 MiB. */
const KEPT_PAGES = 4224;

export class Machine implements AsyncDisposable {
  readonly reactor: Reactor;
  readonly directory: string;
  /** Give this to xenstore-ls and its siblings as XENSTORED_PATH. */
  readonly xenstoreSocket: string;
  /** The machine below: its domains and its xenstore. */
  readonly embedded: EmbeddedMachine;
  readonly #dom0: Domain;
  readonly #ontrace: (event: BackendEvent) => void;
  readonly #guests = new Map<number, Guest>();
  /** Of disks that name none: once with memory of this process, once with memory that other processes can reach. */
  readonly #ownGuests = new Map<boolean, Promise<Guest>>();
  /** Names of guests that are being made. */
  readonly #coming = new Set<string>();
  readonly #disks = new Set<AttachedDisk>();
  /** GUEST/VDEV that are taken, from the first step of attaching to the last of detaching. */
  readonly #vdevs = new Set<string>();
  #nextDomid = DOM0 + 1;
  #disposal: Promise<void> | undefined = undefined;

  static async start(options: MachineOptions = {}): Promise<Machine> {
    const { directory, state, onStateNote } = options;
    const reactor = options.reactor ?? threadReactor();
    const embedded = await EmbeddedMachine.create({
      reactor,
      ...(directory === undefined ? {} : { directory }),
      ...(state === undefined
        ? {}
        : { state: { file: state, ...(onStateNote && { onNote: onStateNote }) } }),
    });
    try {
      if (state !== undefined) await forgetDomains(embedded);
      const socket = options.xenstoreSocket ?? join(embedded.directory, "xenstored.sock");
      await embedded.xenstore.listen(socket);
      const dom0 = await embedded.createDomain(DOM0);
      await createDomainNodes(dom0.store, DOM0, "Domain-0");
      return new Machine(embedded, dom0, socket, reactor, options.ontrace);
    } catch (error) {
      await embedded[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(
    embedded: EmbeddedMachine,
    dom0: Domain,
    xenstoreSocket: string,
    reactor: Reactor,
    ontrace: MachineOptions["ontrace"],
  ) {
    this.embedded = embedded;
    this.#dom0 = dom0;
    this.directory = embedded.directory;
    this.xenstoreSocket = xenstoreSocket;
    this.reactor = reactor;
    this.#ontrace = ontrace ?? (() => {});
  }

  /** The disks that are attached now. */
  get disks(): ReadonlySet<AttachedDisk> {
    return this.#disks;
  }

  /** By domid, those that have not ended. */
  get guests(): ReadonlyMap<number, Guest> {
    return this.#guests;
  }

  /** Makes a guest: a domain to attach disks to, with a life of its own. Rejects with XenError("EEXIST") where there is one
   * of that name, and EINVAL for a name that is none. */
  async createGuest(options: GuestOptions = {}): Promise<Guest> {
    const domid = this.#nextDomid++;
    const { name = `guest-${domid}`, ...domainOptions } = options;
    if (name.length === 0 || name.length > MAX_NAME_CHARACTERS || /[\p{Cc}/]/u.test(name)) {
      throw new XenError("EINVAL", "a guest's name is text of 1 to 128 characters without a slash");
    }
    const taken = [...this.#guests.values()].some((guest) => guest.name === name);
    if (taken || this.#coming.has(name)) {
      throw new XenError("EEXIST", `there is a guest ${name} already`);
    }
    this.#coming.add(name);
    try {
      await using undo = new AsyncDisposableStack();
      const domain = undo.use(await this.embedded.createDomain(domid, domainOptions));
      const uuid = randomUUID();
      await createDomainNodes(this.#dom0.store, domid, name, uuid);
      undo.move();
      const guest = new Guest(domain, {
        name,
        options: domainOptions,
        embedded: this.embedded,
        toolstack: this.#dom0.store,
        onended: () => {
          this.#guests.delete(domid);
          // A xenstore that has ended has no nodes.
          void this.#dom0.store.remove(`/vm/${uuid}`).catch(() => {});
        },
      });
      this.#guests.set(domid, guest);
      return guest;
    } finally {
      this.#coming.delete(name);
    }
  }

  /** Connects a disk to the guest and resolves when both ends are. Owns a store that is given; rejects with one clear
   * message, and leaves nothing behind. */
  attach(disk: BlockStore | StoreSpec, options: AttachOptions): Promise<AttachedDisk> {
    return this.#attach(disk, options, []);
  }

  /** `requests` are submitted before anybody else's. */
  async #attach(
    disk: BlockStore | StoreSpec,
    options: AttachOptions,
    requests: readonly OutstandingRequest[],
  ): Promise<AttachedDisk> {
    const link = options.link ?? "thread";
    await using undo = new AsyncDisposableStack();
    if (!("driver" in disk)) undo.use(disk);
    if (link !== "thread" && !("driver" in disk)) {
      throw new XenError("EINVAL", `a disk for a ${link} is given as a StoreSpec, not opened here`);
    }
    const guest = options.guest ?? (await this.#ownGuest(link === "process"));
    if (guest.state !== "running") throw new XenError("EINVAL", `${guest.name} does not run`);
    if (link === "process" && !guest.shared) {
      throw new XenError("EINVAL", `${guest.name} is not shared: no process can reach it`);
    }
    const backendDomain = link === "thread" ? this.#dom0 : undefined;
    const backendDomid = backendDomain?.id ?? this.#nextDomid++;
    const vbd: VbdDescription = {
      frontendDomid: guest.domid,
      backendDomid,
      vdev: parseVdev(options.vdev),
      readOnly: options.readOnly === true,
      params: "driver" in disk ? paramsOf(disk) : "",
      cdrom: options.cdrom === true,
      removable: options.removable === true,
      kind: options.kind ?? "vbd",
    };
    const name = vdevName(vbd.vdev);
    const key = options.guest === undefined ? name : `${guest.domid}/${name}`;
    if (this.#vdevs.has(key)) {
      throw new XenError("EEXIST", `${name} is attached already; choose another vdev`);
    }
    this.#vdevs.add(key);
    undo.defer(() => void this.#vdevs.delete(key));
    const paths = vbdPaths(vbd);
    if (backendDomain === undefined) {
      undo.defer(() => this.embedded.destroyDomain(backendDomid));
    }
    undo.defer(() => removeVbd(this.#dom0.store, paths));
    const reconnect = options.reconnect === true;
    let frontend: BlockFrontend | undefined;
    const backend = await RestartableBackend.open({
      reconnect,
      clock: systemClock,
      start: async (ondeath) => {
        if (backendDomain === undefined) {
          await this.embedded.destroyDomain(backendDomid);
          await createDomainNodes(this.#dom0.store, backendDomid, `backend-${backendDomid}`);
        }
        await recreateVbd(this.#dom0.store, vbd);
        return await this.#startBackend(disk, link, backendDomain, backendDomid, {
          path: paths.backend,
          readOnly: vbd.readOnly,
          limits: { maxPersistentGrants: KEPT_PAGES, ...options.backend },
          engine: options.engine ?? "auto",
          ondeath,
        });
      },
      ongivenup: (error) => void frontend?.abandon(error),
    });
    undo.use(backend);
    const signals = options.signal === undefined ? [] : [options.signal];
    frontend = await BlockFrontend.connect(guest.domain, paths.frontend, {
      clock: systemClock,
      reconnect,
      ...(options.frontend === undefined ? {} : { limits: options.frontend }),
      signal: AbortSignal.any([guest.ended, ...signals]),
    });
    undo.use(frontend);
    if (guest.state !== "running") {
      // It was suspended or ended meanwhile, and cannot take its leave of the backend.
      const error = new XenError("ESHUTDOWN", `${guest.name} does not run any more`);
      await backend.close();
      await frontend.abandon(error);
      throw error;
    }
    const inherited = inherit(frontend, requests);
    this.reactor.soon();
    const attached: AttachedDisk = new AttachedDisk({
      guest,
      frontend,
      backend,
      spec: "driver" in disk ? disk : undefined,
      options,
      inherited,
      link,
      vdev: name,
      paths,
      askToClose: () => askToClose(this.#dom0.store, paths),
      removeNodes: () => removeVbd(this.#dom0.store, paths),
      onclosed: async () => {
        await using ends = new AsyncDisposableStack();
        ends.defer(() => void this.#vdevs.delete(key));
        if (backendDomain === undefined) {
          ends.defer(() => this.embedded.destroyDomain(backendDomid));
        }
        ends.defer(() => removeVbd(this.#dom0.store, paths));
        this.#disks.delete(attached);
        guest.disks.delete(attached);
      },
    });
    undo.move();
    this.#disks.add(attached);
    guest.disks.add(attached);
    return attached;
  }

  /** Makes a guest, in a new domain, of a file that `Guest.save` wrote. It runs when the promise resolves, its disks are
   * attached, and the requests that it had left unanswered are under way (`AttachedDisk.inherited`). Rejects, and leaves
   * nothing behind, with XenError("EINVAL") for a file that is none or damaged, and with what stands against its name, its
   * disks and the file. */
  async restore(path: string, options: RestoreOptions = {}): Promise<Guest> {
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    // Whoever opens a pipe or a device for reading may wait for ever, with a thread of everybody's.
    if (!(await file.stat()).isFile()) throw new XenError("EINVAL", `${path} is not a file`);
    const stream = file.createReadStream();
    try {
      return await restoreGuest(this.#nursery, new RecordReader(stream, true), options);
    } finally {
      stream.destroy();
    }
  }

  /** Takes the guest that `Guest.migrate` sends from the other end of the stream, which is this call's alone until it
   * settles. As restore; the sender is told what this rejects with. */
  async receive(stream: Duplex, options: RestoreOptions = {}): Promise<Guest> {
    using _guard = guarded(stream);
    const reader = readerOf(stream);
    let guest: Guest;
    try {
      guest = await restoreGuest(this.#nursery, reader, options);
    } catch (error) {
      void reader.drain().catch(() => {});
      const refusal = error instanceof Error ? error.message : String(error);
      await writeAnswer(stream, refusal || "it failed").catch(() => {});
      throw error;
    }
    // Where the sender does not hear it, the guest runs here all the same.
    await writeAnswer(stream, "").catch(() => {});
    return guest;
  }

  get #nursery(): Nursery {
    const { store } = this.#dom0;
    return {
      createGuest: (options) => this.createGuest(options),
      writeNode: async (path, value, permissions) => {
        await store.write(path, value);
        await store.setPermissions(path, permissions);
      },
      attach: (disk, options, requests) => this.#attach(disk, options, requests),
    };
  }

  async #startBackend(
    disk: BlockStore | StoreSpec,
    link: Link,
    domain: Domain | undefined,
    domid: number,
    options: {
      path: string;
      readOnly: boolean;
      limits: Partial<BackendLimits>;
      engine: EngineChoice;
      ondeath: () => void;
    },
  ): Promise<BackendLink> {
    const { engine, ...rest } = options;
    const ondeath = () => {
      // A dead domain's nodes are removed, which is how its frontends learn of it.
      void this.embedded.destroyDomain(domid).catch(() => {});
      options.ondeath();
    };
    const linkOptions = { ...rest, ontrace: this.#ontrace, ondeath };
    if (link === "thread") {
      const { readOnly } = options;
      const store =
        "driver" in disk
          ? await openStore(disk, { reactor: this.reactor, readOnly, engine })
          : disk;
      return await localBackend(domain!, store, linkOptions);
    }
    const ticket = await this.embedded.domainTicket(domid, link);
    return await remoteBackend(link, ticket, disk as StoreSpec, engine, linkOptions);
  }

  /** Only memory that was made for it can be reached from another process. */
  async #ownGuest(shared: boolean): Promise<Guest> {
    let guest = this.#ownGuests.get(shared);
    // One that has ended is replaced.
    if (guest === undefined || (await guest).state === "dead") {
      guest = this.createGuest({ shared });
      this.#ownGuests.set(shared, guest);
    }
    return await guest;
  }

  /** Detaches every disk, then ends the domains, the xenstore and the folder. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  async #dispose(): Promise<void> {
    await using ends = new AsyncDisposableStack();
    ends.use(this.embedded);
    for (const guest of this.#guests.values()) ends.use(guest);
    for (const disk of this.#disks) ends.use(disk);
  }
}
