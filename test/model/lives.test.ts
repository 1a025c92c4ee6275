/**
 * Guests that come, get disks, stop, go on, crash, are saved, restored and destroyed in any order: what their state does
 * not allow is refused and changes nothing, every request ends, and when the last is gone so is all that was theirs:
 * nodes, descriptors, shared memory, children, and the mappings and ports of domain 0.
 */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readlinkSync } from "node:fs";
import { rm } from "node:fs/promises";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { type Guest, type GuestState, Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { XenStore } from "../../src/xen/domain.ts";
import type { EmbeddedDomain } from "../../src/xen/embedded/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { XenStoreClient } from "../../src/xen/xenstore/index.ts";
import { children } from "../support/children.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";
import { explore, seconds } from "./budget.ts";
import { openPorts } from "./open-ports.ts";

/** What ends in the background is gone then, however busy the machine. */
const PATIENCE_MILLISECONDS = 30_000;
const MAX_GUESTS = 3;
const spec = parseDisk(["memory", "256K"], []);

const pick = fc.nat(1000);
const step = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("create" as const), shared: fc.boolean() }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("attach" as const),
      pick,
      vdev: fc.constantFrom("xvda", "xvdb"),
      link: fc.constantFrom("thread", "thread", "thread", "thread", "worker"),
      reconnect: fc.boolean(),
    }),
  },
  fc.record({ do: fc.constant("detach" as const), pick }),
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("write" as const),
      pick,
      count: fc.integer({ min: 1, max: 60 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("suspend" as const), pick }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("resume" as const), pick, cancelled: fc.boolean() }),
  },
  fc.record({ do: fc.constant("shutdown" as const), pick }),
  fc.record({ do: fc.constant("crash" as const), pick }),
  fc.record({ do: fc.constant("destroy" as const), pick }),
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant("save" as const), pick, checkpoint: fc.boolean() }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("restore" as const), pick }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

class World implements AsyncDisposable {
  readonly #machine: Machine;
  readonly #dom0: EmbeddedDomain;
  readonly #store: XenStore;
  readonly #folder: TemporaryFolder;
  readonly #ends: AsyncDisposableStack;
  /** What the model says of those that are not dead. */
  readonly #states = new Map<Guest, GuestState>();
  readonly #saved: string[] = [];
  #outcomes: Promise<unknown>[] = [];
  #number = 0;

  static async open(context: TestContext): Promise<World> {
    // Domain 0 is the machine's own, and its tables are looked at.
    const domains: EmbeddedDomain[] = [];
    const { createDomain } = EmbeddedMachine.prototype;
    context.mock.method(
      EmbeddedMachine.prototype,
      "createDomain",
      async function (this: EmbeddedMachine, ...parameters: Parameters<typeof createDomain>) {
        const domain = await createDomain.apply(this, parameters);
        domains.push(domain);
        return domain;
      },
    );
    await using ends = new AsyncDisposableStack();
    const folder = ends.use(await temporaryFolder());
    const machine = ends.use(await Machine.start({ reactor: new Reactor() }));
    const store = ends.use(await XenStoreClient.connect(machine.xenstoreSocket));
    // The folders of all guests and all vbds stay, as on a host.
    for (const path of ["/vm", "/local/domain/0/backend/vbd"]) await store.mkdir(path);
    return new World(machine, domains[0]!, store, folder, ends.move());
  }

  private constructor(
    machine: Machine,
    dom0: EmbeddedDomain,
    store: XenStore,
    folder: TemporaryFolder,
    ends: AsyncDisposableStack,
  ) {
    this.#machine = machine;
    this.#dom0 = dom0;
    this.#store = store;
    this.#folder = folder;
    this.#ends = ends;
  }

  async take(todo: Step): Promise<void> {
    if (todo.do === "create") {
      if (this.#states.size === MAX_GUESTS) return;
      const name = `guest ${this.#number++}`;
      this.#states.set(await this.#machine.createGuest({ name, shared: todo.shared }), "running");
      return;
    }
    if (todo.do === "restore") return await this.#restore(todo.pick);
    const guests = [...this.#states.keys()];
    const guest = guests[todo.pick % (guests.length || 1)];
    if (guest === undefined) return;
    const state = this.#states.get(guest)!;
    const [disk] = guest.disks;
    switch (todo.do) {
      case "attach": {
        const { vdev, link, reconnect } = todo;
        const taken = [...guest.disks].some((other) => other.vdev === vdev);
        const attaching = this.#machine.attach(spec, {
          guest,
          vdev,
          reconnect,
          link: link as "thread" | "worker",
        });
        return await this.#expect(attaching, state === "running" && !taken, "running");
      }
      case "detach":
        // A suspended disk waits for its guest.
        if (disk !== undefined && state === "running") await disk[Symbol.asyncDispose]();
        return;
      case "write":
        for (let i = 0; disk !== undefined && i < todo.count; i++) {
          const write = disk.write(i * 4096, Buffer.alloc(4096, i));
          this.#outcomes.push(write.catch((error: unknown) => this.#assertHonest(error)));
        }
        return;
      case "suspend":
        await this.#expect(guest.suspend(), state === "running", "running");
        if (state === "running") this.#states.set(guest, "suspend");
        break;
      case "resume": {
        const { cancelled } = todo;
        await this.#expect(guest.resume({ cancelled }), state === "suspend", "suspended");
        if (state === "suspend") this.#states.set(guest, "running");
        break;
      }
      case "shutdown":
        await this.#expect(guest.shutdown("poweroff"), state === "running", "running");
        if (state === "running") this.#states.set(guest, "poweroff");
        break;
      case "crash":
        await guest.crash();
        // The first reason stays with the hypervisor; a guest that crashes is one that has crashed.
        this.#states.set(guest, "crash");
        break;
      case "save": {
        const path = this.#folder.file(`saved ${this.#number++}`);
        const can = state === "running" || state === "suspend";
        await this.#expect(guest.save(path, { checkpoint: todo.checkpoint }), can, "running");
        assert.equal(existsSync(path), can);
        if (can) this.#saved.push(path);
        if (can && !todo.checkpoint) return this.#dead(guest);
        break;
      }
      case "destroy":
        await guest.destroy();
        return this.#dead(guest);
    }
    assert.equal(guest.state, this.#states.get(guest));
  }

  #dead(guest: Guest): void {
    this.#states.delete(guest);
    assert.deepEqual([guest.state, guest.disks.size], ["dead", 0]);
    assert.equal(guest.domain.grants.counters.mapped, 0);
    assert.ok(guest.domain.ended);
  }

  async #restore(pick: number): Promise<void> {
    const path = this.#saved[pick % (this.#saved.length || 1)];
    if (path === undefined || this.#states.size === MAX_GUESTS) return;
    const guest = await this.#machine.restore(path, { name: `guest ${this.#number++}` });
    this.#states.set(guest, "running");
    for (const { inherited } of guest.disks) {
      for (const { outcome } of inherited) {
        this.#outcomes.push(outcome.catch((error: unknown) => this.#assertHonest(error)));
      }
    }
  }

  /** What becomes of requests whose guest is no more. */
  #assertHonest(error: unknown): void {
    const { code } = error as { code?: string };
    assert.ok(code === "EIO" || code === "ESHUTDOWN", String(error));
  }

  async #expect(outcome: Promise<unknown>, can: boolean, is: string): Promise<void> {
    if (can) await outcome;
    else
      await assert.rejects(
        outcome,
        ({ code }: { code?: string }) => /^E(INVAL|EXIST)$/.test(code ?? ""),
        is,
      );
  }

  /** Everyone is destroyed, and every request has ended. */
  async end(): Promise<void> {
    for (const guest of this.#states.keys()) {
      await guest.destroy();
      this.#dead(guest);
    }
    for (const path of this.#saved.splice(0)) await rm(path);
    await Promise.all(this.#outcomes);
    this.#outcomes = [];
  }

  async census(): Promise<object> {
    const { granted, mapped } = this.#dom0.grants.counters;
    return {
      granted,
      mapped,
      ports: openPorts(this.#dom0),
      guests: this.#machine.guests.size,
      disks: this.#machine.disks.size,
      children: children(),
      descriptors: descriptors(),
      folder: readdirSync(this.#machine.directory),
      nodes: await this.#nodes(""),
    };
  }

  async #nodes(path: string): Promise<string[]> {
    const names = (await this.#store.list(path === "" ? "/" : path)) ?? [];
    const below = await Promise.all(names.map((name) => this.#nodes(`${path}/${name}`)));
    return [...names.map((name) => `${path}/${name}`), ...below.flat()].sort();
  }

  /** What is still on its way is waited for. */
  async assertCensus(expected: object): Promise<void> {
    const end = performance.now() + PATIENCE_MILLISECONDS;
    for (;;) {
      const census = await this.census();
      try {
        assert.deepEqual(census, expected);
        return;
      } catch (error) {
        if (performance.now() > end) throw error;
      }
      await sleep(5);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}

/** Open descriptors by kind, memory of domains among them. Eventfds are kept for the next threads. */
function descriptors(): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of readdirSync("/proc/self/fd")) {
    let target: string;
    try {
      target = readlinkSync(`/proc/self/fd/${name}`).replace(/:?\[?\d+\]?.*/, "");
    } catch {
      // That of the listing itself.
      continue;
    }
    if (!target.startsWith("anon_inode")) counts[target] = (counts[target] ?? 0) + 1;
  }
  return counts;
}

test("whatever becomes of guests, nothing of theirs is left in the end", {
  timeout: (seconds(1) + 240) * 1000,
}, async (context) => {
  await using world = await World.open(context);
  const first: Step[] = [
    { do: "create", shared: true },
    { do: "attach", pick: 0, vdev: "xvda", link: "worker", reconnect: false },
    { do: "attach", pick: 0, vdev: "xvdb", link: "thread", reconnect: true },
    { do: "write", pick: 0, count: 60 },
    { do: "save", pick: 0, checkpoint: true },
    { do: "restore", pick: 0 },
  ];
  const live = async (steps: readonly Step[]): Promise<void> => {
    for (const todo of steps) await world.take(todo);
    await world.end();
  };
  const before = await world.census();
  await live(first);
  await world.assertCensus(before);
  const steps = fc.array(step, { minLength: 5, maxLength: 40, size: "max" });
  const lives = await explore(0.15, steps, async (todo) => {
    await live(todo);
    await world.assertCensus(before);
  });
  context.diagnostic(`${lives} lives`);
});
