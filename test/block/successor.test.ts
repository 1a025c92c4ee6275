/** Backends that end, or are killed, under a frontend that goes on; their successors serve the same rings. */
import assert from "node:assert/strict";
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { BlockFrontend, type FrontendLimits } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { Disk } from "../../src/store/disk.ts";
import { systemClock } from "../../src/util/clock.ts";
import { SeededRandom } from "../../src/util/random.ts";
import type { Domain, XenStore, XenStorePermission } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { createDomainNodes, createVbd, type VbdPaths } from "../../src/xen/toolstack.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";
import type { Served } from "./successor-process.ts";

const GUEST = 1;
const BACKEND = 7;
const WRITERS = 24;
const BLOCK_BYTES = 8192;

/** A guest with one disk, and a domain whose process comes and goes. */
class World implements AsyncDisposable {
  readonly machine: EmbeddedMachine;
  readonly guest: Domain;
  readonly #toolstack: XenStore;
  readonly #paths: VbdPaths;
  readonly #folder: TemporaryFolder;
  readonly #ends: AsyncDisposableStack;
  readonly #journal: boolean;
  #child: ChildProcess | undefined = undefined;

  static async start(journal: boolean): Promise<World> {
    await using ends = new AsyncDisposableStack();
    const folder = ends.use(await temporaryFolder());
    await writeFile(folder.file("a.img"), Buffer.alloc(WRITERS * BLOCK_BYTES));
    await mkdir(folder.file("journal"));
    const machine = ends.use(
      await EmbeddedMachine.create({ reactor: new Reactor(), memoryPages: 2048 }),
    );
    const dom0 = await machine.createDomain(0);
    const guest = await machine.createDomain(GUEST, { shared: true });
    await createDomainNodes(dom0.store, GUEST, "guest");
    const paths = await createVbd(dom0.store, {
      frontendDomid: GUEST,
      backendDomid: BACKEND,
      vdev: 51712,
      readOnly: false,
      params: "test",
    });
    return new World(machine, guest, dom0.store, paths, folder, ends.move(), journal);
  }

  private constructor(
    machine: EmbeddedMachine,
    guest: Domain,
    toolstack: XenStore,
    paths: VbdPaths,
    folder: TemporaryFolder,
    ends: AsyncDisposableStack,
    journal: boolean,
  ) {
    this.machine = machine;
    this.guest = guest;
    this.#toolstack = toolstack;
    this.#paths = paths;
    this.#folder = folder;
    this.#ends = ends;
    this.#journal = journal;
  }

  /** Starts a process that serves the vbd; resolves when it says `word`. */
  async serve(word: "open" | "connected"): Promise<void> {
    const ticket = await this.machine.domainTicket(BACKEND, "process");
    await this.#share([
      { domid: 0, access: "none" },
      { domid: BACKEND, access: "both" },
      { domid: GUEST, access: "read" },
    ]);
    const served: Served = {
      ticket,
      path: this.#paths.backend,
      image: this.#folder.file("a.img"),
      journals: this.#journal ? this.#folder.file("journal") : null,
    };
    const child = fork(
      new URL("./successor-process.ts", import.meta.url),
      [JSON.stringify(served)],
      {
        execArgv: process.execArgv.filter((argument) => !argument.startsWith("--test")),
      },
    );
    this.#child = child;
    const exit = once(child, "exit");
    for (let said: unknown; said !== word; ) {
      [said] = await Promise.race([once(child, "message"), exit]);
      assert.equal(typeof said, "string", "the backend's process has ended");
    }
  }

  async connect(limits: Partial<FrontendLimits>): Promise<BlockFrontend> {
    return await BlockFrontend.connect(this.guest, this.#paths.frontend, {
      clock: systemClock,
      limits,
    });
  }

  /** The process is gone, and what a kernel takes back of it; the domain that it ran in stays, as dom0 would. */
  async end(how: "kill" | "leave"): Promise<void> {
    const child = this.#child!;
    const exit = once(child, "exit");
    if (how === "kill") child.kill("SIGKILL");
    else child.send("leave");
    const [code] = await exit;
    if (how === "leave") assert.equal(code, 0);
    this.#child = undefined;
    // Nodes of a domain that dies go with it; those of a process do not.
    await this.#share([
      { domid: 0, access: "none" },
      { domid: GUEST, access: "read" },
    ]);
    await this.machine.destroyDomain(BACKEND);
  }

  /** Gives the backend's directory these permissions, and lets the backend read the frontend's. */
  async #share(permissions: XenStorePermission[]): Promise<void> {
    await this.#shareAll(this.#paths.backend, permissions);
    await this.#shareAll(this.#paths.frontend, [
      { domid: GUEST, access: "none" },
      { domid: BACKEND, access: "read" },
    ]);
  }

  async #shareAll(path: string, permissions: XenStorePermission[]): Promise<void> {
    await this.#toolstack.setPermissions(path, permissions);
    for (const name of (await this.#toolstack.list(path))!) {
      await this.#shareAll(`${path}/${name}`, permissions);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#ends.disposeAsync();
  }
}

/** Writers that each own a block, and write one generation after the other into it. */
class Load {
  readonly #disk: Disk;
  readonly #generations = new Uint32Array(WRITERS);
  readonly #writers: Promise<void>[];
  #stopped = false;

  constructor(disk: Disk) {
    this.#disk = disk;
    this.#writers = Array.from(this.#generations, (_, block) => this.#write(block));
  }

  get written(): number {
    return this.#generations.reduce((sum, generation) => sum + generation);
  }

  async #write(block: number): Promise<void> {
    while (!this.#stopped) {
      const generation = this.#generations[block]! + 1;
      const bytes = Buffer.alloc(BLOCK_BYTES, `${block} ${generation} `);
      await this.#disk.write(block * BLOCK_BYTES, bytes);
      this.#generations[block] = generation;
      if (generation % 5 === block % 5) await this.#disk.flush();
      if (generation % 3 === block % 3) await this.#check(block);
    }
  }

  async #check(block: number): Promise<void> {
    const bytes = Buffer.from(await this.#disk.read(block * BLOCK_BYTES, BLOCK_BYTES));
    const expected = Buffer.alloc(BLOCK_BYTES, `${block} ${this.#generations[block]} `);
    assert.equal(bytes.toString("latin1", 0, 20), expected.toString("latin1", 0, 20));
    assert.ok(bytes.equals(expected));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#writers);
    for (let block = 0; block < WRITERS; block++) await this.#check(block);
  }
}

const lives: ["kill" | "leave", Partial<FrontendLimits>, string][] = [
  ["kill", {}, ""],
  ["kill", { persistent: false, maxQueues: 2 }, " with two rings and no persistent grants"],
  ["leave", { maxRingPageOrder: 2, maxQueues: 2 }, " with two rings of four pages"],
];
for (const [how, limits, kind] of lives) {
  const ends = how === "kill" ? "is killed" : "leaves";
  test(`a backend that ${ends} under load is followed by another, and a frontend${kind} notices nothing`, async (t) => {
    const seed = Number(process.env.VBDKIT_SEED ?? Date.now() % 1e6);
    t.diagnostic(`VBDKIT_SEED=${seed}`);
    const random = new SeededRandom(seed);
    await using world = await World.start(how === "kill");
    await world.serve("open");
    const frontend = await world.connect(limits);
    await using disk = new Disk(frontend, world.guest.reactor);
    const load = new Load(disk);
    for (let life = 0; life < 3; life++) {
      const before = load.written;
      while (load.written < before + 50) await sleep(random.below(10));
      await world.end(how);
      await world.serve("connected");
    }
    await load.stop();
    assert.equal(frontend.state, "connected");
  });
}
