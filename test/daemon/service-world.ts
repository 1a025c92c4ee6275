/** A machine whose domain 0 (or another) runs a service for vbds, and guests that play both toolstack and frontends. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { BlockFrontend } from "../../src/block/index.ts";
import { type DeviceRequest, VbdService } from "../../src/daemon/vbd-service.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { Disk } from "../../src/store/disk.ts";
import { systemClock } from "../../src/util/clock.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import {
  createDomainNodes,
  createVbd,
  recreateVbd,
  type VbdDescription,
  type VbdPaths,
} from "../../src/xen/toolstack.ts";

export const GUEST = 1;
export const IMAGE_BYTES: number = 2 ** 20;

export class ServiceWorld implements AsyncDisposable {
  readonly machine: EmbeddedMachine;
  readonly dom0: Domain;
  readonly guest: Domain;
  /** The domain of the backends. */
  readonly backend: Domain;
  readonly folder: string;
  readonly notes: string[] = [];
  /** Directories that were asked about. */
  readonly asked: string[] = [];
  /** Nobody is told what a directory is before. */
  resolving: Promise<void> = Promise.resolve();
  service!: VbdService;
  readonly #frontends: Disk[] = [];
  #resolve: ((path: string) => Promise<DeviceRequest | undefined>) | undefined = undefined;

  /** `resolve` reads a backend's directory; a params node that names a file of the folder is ours where it is absent. */
  static async start(
    backendDomid = 0,
    resolve?: (path: string) => Promise<DeviceRequest | undefined>,
  ): Promise<ServiceWorld> {
    const machine = await EmbeddedMachine.create({ reactor: new Reactor(), memoryPages: 2048 });
    const dom0 = await machine.createDomain(0);
    const guest = await machine.createDomain(GUEST);
    await createDomainNodes(dom0.store, 0, "Domain-0");
    await createDomainNodes(dom0.store, GUEST, "web");
    let backend = dom0;
    if (backendDomid !== 0) {
      backend = await machine.createDomain(backendDomid);
      await createDomainNodes(dom0.store, backendDomid, "storage");
    }
    const folder = await mkdtemp(join(tmpdir(), "vbdkit-test-"));
    await writeFile(join(folder, "a.img"), Buffer.alloc(IMAGE_BYTES));
    const world = new ServiceWorld(machine, dom0, guest, backend, folder);
    world.#resolve = resolve;
    await world.begin();
    return world;
  }

  private constructor(
    machine: EmbeddedMachine,
    dom0: Domain,
    guest: Domain,
    backend: Domain,
    folder: string,
  ) {
    this.machine = machine;
    this.dom0 = dom0;
    this.guest = guest;
    this.backend = backend;
    this.folder = folder;
  }

  /** Begins a service, as a daemon that is started does. */
  async begin(kinds: readonly string[] = ["vbd3"]): Promise<void> {
    const { store, id } = this.backend;
    this.service = await VbdService.start({
      domain: this.backend,
      roots: kinds.map((kind) => `/local/domain/${id}/backend/${kind}`),
      levels: 2,
      resolve: async (path) => {
        this.asked.push(path);
        await this.resolving;
        if (this.#resolve !== undefined) return await this.#resolve(path);
        return this.requestOf(await store.read(`${path}/params`));
      },
      journals: join(this.folder, "journals"),
      ontrace: ({ kind, message }) => this.notes.push(`${kind}: ${message}`),
    });
  }

  requestOf(params: string | undefined): DeviceRequest | undefined {
    if (params === undefined || params === "theirs") return undefined;
    if (params === "bad") throw new Error("bad: is no disk");
    return {
      text: params,
      spec: { driver: "file", parameters: { file: join(this.folder, params) }, filters: [] },
      readOnly: false,
      engine: "auto",
      limits: {},
    };
  }

  /** As xl block-attach. */
  async make(
    vdev: number,
    params: string = "a.img",
    frontendDomid: number = GUEST,
  ): Promise<VbdPaths> {
    return await createVbd(this.dom0.store, this.#describe(vdev, params, frontendDomid));
  }

  /** Removes a vbd and makes it again in one step: nobody sees that there was none. */
  async makeAgain(vdev: number): Promise<VbdPaths> {
    return await recreateVbd(this.dom0.store, this.#describe(vdev, "a.img", GUEST));
  }

  #describe(vdev: number, params: string, frontendDomid: number): VbdDescription {
    return {
      ...{ frontendDomid, backendDomid: this.backend.id, vdev },
      ...{ readOnly: false, params, kind: "vbd3" },
    };
  }

  async connect(paths: VbdPaths, domain: Domain = this.guest): Promise<Disk> {
    const frontend = await BlockFrontend.connect(domain, paths.frontend, { clock: systemClock });
    const disk = new Disk(frontend, domain.reactor);
    this.#frontends.push(disk);
    return disk;
  }

  /** Waits until a node has a value; undefined where it is to be missing. */
  async until(path: string, value: string | undefined): Promise<void> {
    for (let tries = 0; (await this.dom0.store.read(path)) !== value; tries++) {
      if (tries === 500) {
        throw new Error(`${path} stays ${await this.dom0.store.read(path)}, not ${value}`);
      }
      await sleep(10);
    }
  }

  async untilAsked(path: string): Promise<void> {
    for (let tries = 0; !this.asked.includes(path); tries++) {
      if (tries === 500) throw new Error(`nobody asks about ${path}`);
      await sleep(10);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const disk of this.#frontends) await disk[Symbol.asyncDispose]();
    await this.service.leave();
    await this.machine[Symbol.asyncDispose]();
    await rm(this.folder, { recursive: true, force: true });
  }
}
