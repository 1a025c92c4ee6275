/** Domains 0 and 1, and a vbd of 1 MiB whose backend is ours and whose frontend is the test's; and time to go with it. */
import {
  type BackendEvent,
  BlockBackend,
  type BlockBackendOptions,
} from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { openStore } from "../../src/store/registry.ts";
import type { Clock } from "../../src/util/clock.ts";
import type { Domain } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import {
  createDomainNodes,
  createVbd,
  type VbdDescription,
  type VbdPaths,
} from "../../src/xen/toolstack.ts";
import { ScriptedFrontend } from "./scripted-frontend.ts";

export interface BackendWorld extends AsyncDisposable {
  readonly machine: EmbeddedMachine;
  readonly dom0: Domain;
  readonly guest: Domain;
  readonly backend: BlockBackend;
  readonly frontend: ScriptedFrontend;
  readonly paths: VbdPaths;
  /** The store behind the backend, by itself. */
  readonly disk: Disk;
  /** What the backend traced. */
  readonly events: readonly BackendEvent[];
}

export interface BackendWorldOptions extends BlockBackendOptions {
  /** Time that each request takes. */
  readonly delay?: string;
  /** Another disk than 1 MiB of memory. */
  readonly store?: (reactor: Reactor) => Promise<BlockStore>;
  /** A disk that is opened when the frontend connects; `disk` is another then. */
  readonly opener?: (reactor: Reactor) => Promise<BlockStore>;
  readonly vbd?: Partial<VbdDescription>;
  /** Written into the backend's directory before the backend starts. */
  readonly nodes?: Readonly<Record<string, string>>;
}

export async function backendWorld(options: BackendWorldOptions = {}): Promise<BackendWorld> {
  const ends = new AsyncDisposableStack();
  const reactor = new Reactor();
  const machine = ends.use(await EmbeddedMachine.create({ reactor, memoryPages: 1024 }));
  const dom0 = await machine.createDomain(0);
  const guest = await machine.createDomain(1);
  await createDomainNodes(dom0.store, 0, "Domain-0");
  await createDomainNodes(dom0.store, 1, "guest");
  const paths = await createVbd(dom0.store, {
    frontendDomid: 1,
    backendDomid: 0,
    vdev: 51712,
    readOnly: options.readOnly === true,
    params: "test",
    ...options.vbd,
  });
  for (const [key, value] of Object.entries(options.nodes ?? {})) {
    await dom0.store.write(`${paths.backend}/${key}`, value);
  }
  const store = await (options.store ?? memory(options.delay))(reactor);
  const { opener } = options;
  const events: BackendEvent[] = [];
  const backend = ends.use(
    await BlockBackend.open(dom0, paths.backend, opener ? () => opener(reactor) : store, {
      ontrace: (event) => events.push(event),
      ...options,
    }),
  );
  const frontend = ends.use(new ScriptedFrontend(guest, paths));
  return {
    machine,
    dom0,
    guest,
    backend,
    frontend,
    paths,
    disk: new Disk(store, reactor),
    events,
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

function memory(delay: string | undefined): (reactor: Reactor) => Promise<BlockStore> {
  const filters = delay === undefined ? [] : [{ name: "delay", parameters: { delay } }];
  return (reactor) =>
    openStore({ driver: "memory", parameters: { size: "1M" }, filters }, { reactor });
}

/** Time that passes when it is told to. */
export class TestClock implements Clock {
  readonly #timers = new Map<() => void, number>();
  #now = 1000;

  now(): number {
    return this.#now;
  }

  /** Callbacks that are still to come. */
  get pending(): number {
    return this.#timers.size;
  }

  after(milliseconds: number, callback: () => void): Disposable {
    const entry = () => callback();
    this.#timers.set(entry, this.#now + milliseconds);
    return { [Symbol.dispose]: () => void this.#timers.delete(entry) };
  }

  /** Calls back all that falls due, in order. */
  advance(milliseconds: number): void {
    const end = this.#now + milliseconds;
    for (;;) {
      const due = [...this.#timers].filter(([, at]) => at <= end).sort((l, r) => l[1] - r[1])[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1]);
      due[0]();
    }
    this.#now = end;
  }
}
