/** A frontend before a scripted backend, on one thread, with a disk of bytes that both tests and backend see. */
import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import {
  BlockFrontend,
  type BlockFrontendOptions,
  type FrontendLimits,
} from "../../src/block/index.ts";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { BlockRequest, Operation } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { type Clock, systemClock } from "../../src/util/clock.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd, type VbdPaths } from "../../src/xen/toolstack.ts";
import { ScriptedBackend } from "./scripted-backend.ts";

export const GUEST = 1;
export const DISK_BYTES: number = 2048 * 512;

/** Time that passes when a test says so. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #timers = new Set<{ at: number; callback: () => void }>();

  now(): number {
    return this.#now;
  }

  after(milliseconds: number, callback: () => void): Disposable {
    const timer = { at: this.#now + milliseconds, callback };
    this.#timers.add(timer);
    return { [Symbol.dispose]: () => void this.#timers.delete(timer) };
  }

  get timers(): number {
    return this.#timers.size;
  }

  advance(milliseconds: number): void {
    this.#now += milliseconds;
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#now) continue;
      this.#timers.delete(timer);
      timer.callback();
    }
  }
}

export interface WorldOptions {
  /** Of the backend. */
  readonly keys?: Record<string, string>;
  readonly limits?: Partial<FrontendLimits>;
  readonly frontend?: Partial<BlockFrontendOptions>;
  readonly clock?: Clock;
  /** Written by the toolstack into the frontend's directory. */
  readonly frontendKeys?: Record<string, string>;
  readonly grantEntries?: number;
  readonly memoryPages?: number;
  /** Pages that the backend leaves mapped are no failure of the test. */
  readonly leaks?: boolean;
  /** Before the frontend is started. */
  readonly before?: (backend: ScriptedBackend) => Promise<void>;
}

export class World implements AsyncDisposable {
  readonly machine: EmbeddedMachine;
  readonly dom0: Domain;
  readonly guest: Domain;
  readonly paths: VbdPaths;
  readonly bytes: Uint8Array = new Uint8Array(DISK_BYTES);
  backend: ScriptedBackend;
  frontend!: BlockFrontend;
  disk!: Disk;
  readonly #options: WorldOptions;

  static async start(options: WorldOptions = {}): Promise<World> {
    const reactor = new Reactor();
    const machine = await EmbeddedMachine.create({ reactor, memoryPages: 2048 });
    try {
      const dom0 = await machine.createDomain(0);
      const { grantEntries, memoryPages } = options;
      const guest = await machine.createDomain(GUEST, {
        ...(grantEntries === undefined ? {} : { grantEntries }),
        ...(memoryPages === undefined ? {} : { memoryPages }),
      });
      await createDomainNodes(dom0.store, 0, "Domain-0");
      await createDomainNodes(dom0.store, GUEST, "guest");
      const paths = await createVbd(dom0.store, vbd(0));
      for (const [key, value] of Object.entries(options.frontendKeys ?? {})) {
        await dom0.store.write(`${paths.frontend}/${key}`, value);
      }
      const world = new World(machine, dom0, guest, paths, options);
      await options.before?.(world.backend);
      const connecting = BlockFrontend.connect(guest, paths.frontend, {
        clock: options.clock ?? systemClock,
        limits: options.limits ?? {},
        ...options.frontend,
      });
      const [frontend] = await Promise.all([
        connecting,
        world.backend.connect(GUEST, options.keys),
      ]);
      world.frontend = frontend;
      world.disk = new Disk(frontend, reactor);
      return world;
    } catch (error) {
      await machine[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(
    machine: EmbeddedMachine,
    dom0: Domain,
    guest: Domain,
    paths: VbdPaths,
    options: WorldOptions,
  ) {
    this.machine = machine;
    this.dom0 = dom0;
    this.guest = guest;
    this.paths = paths;
    this.#options = options;
    this.backend = new ScriptedBackend(dom0, paths);
    this.serve();
  }

  /** The backend does what it is asked, at once. */
  serve(backend: ScriptedBackend = this.backend): void {
    backend.onrequest = (request, queue) =>
      backend.answer(request, backend.execute(request, this.bytes), queue);
  }

  /** Another backend for the same frontend, which the frontend's directory names from now on. */
  async move(domid: number): Promise<ScriptedBackend> {
    const domain = await this.machine.createDomain(domid);
    await createDomainNodes(this.dom0.store, domid, `backend-${domid}`);
    // The rights to what is there are those of the first backend.
    await this.dom0.store.remove(this.paths.frontend);
    const paths = await createVbd(this.dom0.store, vbd(domid));
    this.backend = new ScriptedBackend(domain, paths);
    this.serve();
    return this.backend;
  }

  /** A request of one page; what it writes is all `value`. */
  request(operation: Operation, page: number, value = 0, pages = 1): PlainRequest {
    const region = allocateRegion(pages * 4096);
    region.bytes.fill(value);
    const segments = new SegmentList(1);
    segments.add(region, 0, region.bytes.length);
    const { promise, resolve } = Promise.withResolvers<number>();
    const request = new BlockRequest({
      completed: (ended) => {
        plain.ends++;
        resolve(ended.status);
      },
    });
    request.operation = operation;
    request.offset = page * 4096;
    request.length = operation === Operation.flush ? 0 : region.bytes.length;
    if (operation <= Operation.write) request.segments = segments;
    const plain: PlainRequest = { request, bytes: region.bytes, status: promise, ends: 0 };
    return plain;
  }

  submit(plain: PlainRequest, ordered = false): PlainRequest {
    if (ordered) this.frontend.submitOrdered(plain.request);
    else this.frontend.submit(plain.request);
    this.guest.reactor.soon();
    return plain;
  }

  /** Waits until the condition holds. */
  async until(condition: () => boolean, what: string): Promise<void> {
    for (let turns = 0; !condition(); turns++) {
      assert.ok(turns < 20_000, what);
      await turn();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closing = this.frontend[Symbol.asyncDispose]();
    await this.backend.frontendIs(5, 6);
    this.backend[Symbol.dispose]();
    await this.backend.become(6);
    await closing;
    const { quarantined, granted } = this.guest.grants.counters;
    if (this.#options.leaks !== true)
      assert.deepEqual({ quarantined, granted }, { quarantined: 0, granted: 0 });
    await this.machine[Symbol.asyncDispose]();
  }
}

function vbd(backendDomid: number) {
  return { frontendDomid: GUEST, backendDomid, vdev: 51712, readOnly: false, params: "test" };
}

export interface PlainRequest {
  readonly request: BlockRequest;
  readonly bytes: Uint8Array;
  readonly status: Promise<number>;
  /** Times that it was completed. */
  ends: number;
}

export { Operation };
