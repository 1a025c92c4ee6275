/**
 * A machine without Xen, ready to use: domains that share memory, a xenstore that anyone may look at, and virtual block
 * devices between them. It plays the toolstack: it writes the nodes, starts both ends, and removes them at the end.
 */
import { join } from "node:path";
import {
  type BackendEvent,
  type BackendLimits,
  BlockFrontend,
  type FrontendLimits,
} from "../block/index.ts";
import { type Reactor, threadReactor } from "../io/reactor.ts";
import type { BlockStore, EngineChoice, StoreSpec } from "../store/block-store.ts";
import { openStore } from "../store/registry.ts";
import { systemClock } from "../util/clock.ts";
import { type Domain, XenError } from "../xen/domain.ts";
import { EmbeddedMachine } from "../xen/embedded/index.ts";
import {
  createDomainNodes,
  createVbd,
  removeVbd,
  takeOffline,
  type VbdDescription,
} from "../xen/toolstack.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import { AttachedDisk, type Link } from "./attached-disk.ts";
import { type BackendLink, localBackend, remoteBackend } from "./backend-link.ts";

export interface MachineOptions {
  /** Folder of sockets and shared memory; a fresh one of mode 0700 under the system's temporary folder if absent. */
  readonly directory?: string;
  /** Path of the xenstore socket; `xenstored.sock` in the directory if absent. */
  readonly xenstoreSocket?: string;
  /** The thread's own if absent: then the stores that openStore() opens fit. */
  readonly reactor?: Reactor;
  /** What happens to vbds that a person may want to know. */
  readonly ontrace?: (event: BackendEvent) => void;
}

export interface AttachOptions {
  /** xvda, xvdb1, sda, 51712 ... */
  readonly vdev: string;
  /** "thread" if absent. Elsewhere the disk is given as a StoreSpec, which is opened there. */
  readonly link?: Link;
  readonly readOnly?: boolean;
  readonly engine?: EngineChoice;
  readonly frontend?: Partial<FrontendLimits>;
  readonly backend?: Partial<BackendLimits>;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
}

/** Domain 0 has the backends of this thread, as on a host. */
const DOM0 = 0;

export class Machine implements AsyncDisposable {
  readonly reactor: Reactor;
  readonly directory: string;
  /** Give this to xenstore-ls and its siblings as XENSTORED_PATH. */
  readonly xenstoreSocket: string;
  readonly #embedded: EmbeddedMachine;
  readonly #dom0: Domain;
  readonly #ontrace: (event: BackendEvent) => void;
  /** The guest, once with memory of this process and once with memory that other processes can reach. */
  readonly #guests = new Map<boolean, Promise<Domain>>();
  readonly #disks = new Set<AttachedDisk>();
  /** Names that are taken, from the first step of attaching to the last of detaching. */
  readonly #vdevs = new Set<string>();
  #nextDomid = DOM0 + 1;
  #disposal: Promise<void> | undefined = undefined;

  static async start(options: MachineOptions = {}): Promise<Machine> {
    const { directory } = options;
    const reactor = options.reactor ?? threadReactor();
    const embedded = await EmbeddedMachine.create({
      reactor,
      ...(directory === undefined ? {} : { directory }),
    });
    try {
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
    this.#embedded = embedded;
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

  /** Connects a disk to the guest and resolves when both ends are. Owns a store that is given; rejects with one clear
   * message, and leaves nothing behind. */
  async attach(disk: BlockStore | StoreSpec, options: AttachOptions): Promise<AttachedDisk> {
    const link = options.link ?? "thread";
    await using undo = new AsyncDisposableStack();
    if (!("driver" in disk)) undo.use(disk);
    if (link !== "thread" && !("driver" in disk)) {
      throw new XenError("EINVAL", `a disk for a ${link} is given as a StoreSpec, not opened here`);
    }
    const guest = await this.#guest(link === "process");
    const backendDomain = link === "thread" ? this.#dom0 : undefined;
    const backendDomid = backendDomain?.id ?? this.#nextDomid++;
    const vbd: VbdDescription = {
      frontendDomid: guest.id,
      backendDomid,
      vdev: parseVdev(options.vdev),
      readOnly: options.readOnly === true,
      params: "driver" in disk ? paramsOf(disk) : "",
    };
    const name = vdevName(vbd.vdev);
    if (this.#vdevs.has(name)) {
      throw new XenError("EEXIST", `${name} is attached already; choose another vdev`);
    }
    this.#vdevs.add(name);
    undo.defer(() => void this.#vdevs.delete(name));
    if (backendDomain === undefined) {
      await createDomainNodes(this.#dom0.store, backendDomid, `backend-${backendDomid}`);
      undo.defer(() => this.#embedded.destroyDomain(backendDomid));
    }
    const paths = await createVbd(this.#dom0.store, vbd);
    undo.defer(() => removeVbd(this.#dom0.store, paths));
    const backend = await this.#startBackend(disk, link, backendDomain, backendDomid, {
      path: paths.backend,
      readOnly: vbd.readOnly,
      limits: options.backend ?? {},
      engine: options.engine ?? "auto",
    });
    undo.use(backend);
    const { signal } = options;
    const frontend = await BlockFrontend.connect(guest, paths.frontend, {
      clock: systemClock,
      ...(options.frontend === undefined ? {} : { limits: options.frontend }),
      ...(signal === undefined ? {} : { signal }),
    });
    undo.use(frontend);
    const attached: AttachedDisk = new AttachedDisk({
      domain: guest,
      frontend,
      backend,
      link,
      vdev: name,
      paths,
      onclosed: async () => {
        await using ends = new AsyncDisposableStack();
        ends.defer(() => void this.#vdevs.delete(name));
        if (backendDomain === undefined) {
          ends.defer(() => this.#embedded.destroyDomain(backendDomid));
        }
        ends.defer(() => removeVbd(this.#dom0.store, paths));
        ends.defer(() => takeOffline(this.#dom0.store, paths));
        this.#disks.delete(attached);
      },
    });
    undo.move();
    this.#disks.add(attached);
    return attached;
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
    },
  ): Promise<BackendLink> {
    const { engine, ...rest } = options;
    // A dead domain's nodes are removed, which is how its frontends learn of it.
    const ondeath = () => void this.#embedded.destroyDomain(domid).catch(() => {});
    const linkOptions = { ...rest, ontrace: this.#ontrace, ondeath };
    if (link === "thread") {
      const { readOnly } = options;
      const store =
        "driver" in disk
          ? await openStore(disk, { reactor: this.reactor, readOnly, engine })
          : disk;
      return await localBackend(domain!, store, linkOptions);
    }
    const ticket = await this.#embedded.domainTicket(domid, link);
    return await remoteBackend(link, ticket, disk as StoreSpec, engine, linkOptions);
  }

  /** The domain that has the frontends. Only memory that was made for it can be reached from another process. */
  #guest(shared: boolean): Promise<Domain> {
    let guest = this.#guests.get(shared);
    if (guest === undefined) {
      const domid = this.#nextDomid++;
      guest = (async () => {
        const domain = await this.#embedded.createDomain(domid, { shared });
        await createDomainNodes(this.#dom0.store, domid, `guest-${domid}`);
        return domain;
      })();
      this.#guests.set(shared, guest);
    }
    return guest;
  }

  /** Detaches every disk, then ends the domains, the xenstore and the folder. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose();
    return this.#disposal;
  }

  async #dispose(): Promise<void> {
    await using ends = new AsyncDisposableStack();
    ends.use(this.#embedded);
    for (const disk of this.#disks) ends.use(disk);
  }
}

/** The params node of a disk that has a spec: what a person would type. */
function paramsOf(spec: StoreSpec): string {
  const parameters = Object.entries(spec.parameters).map(([name, value]) => `${name}=${value}`);
  return [spec.driver, ...parameters].join(" ");
}
