/** QEMU's own xen-block backend, a domain by way of the shim, serves our frontend: neither shares code with us. */
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { BlockFrontend } from "../../../src/block/index.ts";
import { Disk } from "../../../src/store/disk.ts";
import { systemClock } from "../../../src/util/clock.ts";
import {
  createDomainNodes,
  createVbd,
  type Domain,
  EmbeddedMachine,
  XenStoreClient,
} from "../../../src/xen/index.ts";
import { unpacked } from "../../support/debian.ts";
import { until } from "./exchange.ts";

const SIZE = 16 * 2 ** 20;
const GUEST = 1;
/** QEMU looks for its devices below domain 0. */
const BACKEND = 0;

const scratch = mkdtempSync(join(tmpdir(), "vbdkit-qemu-"));
const shim = join(scratch, "shim.so");
const source = new URL("../../support/qemu-xen-block-shim.c", import.meta.url).pathname;

before(() => {
  execFileSync("gcc", ["-shared", "-fPIC", "-O2", "-o", shim, source, "-lpthread"]);
});
after(() => rmSync(scratch, { recursive: true }));

/** A machine with a guest, QEMU as its domain 0, and a raw image that QEMU serves as xvda. */
class QemuWorld implements AsyncDisposable {
  readonly image: string;
  readonly machine: EmbeddedMachine;
  readonly guest: Domain;
  readonly #qemu: ChildProcess;
  readonly #exit: Promise<unknown>;
  readonly #log: string;

  private constructor(
    image: string,
    machine: EmbeddedMachine,
    guest: Domain,
    qemu: ChildProcess,
    log: string,
  ) {
    this.image = image;
    this.machine = machine;
    this.guest = guest;
    this.#qemu = qemu;
    this.#exit = once(qemu, "exit");
    this.#log = log;
  }

  static async start(name: string): Promise<QemuWorld> {
    const image = join(scratch, `${name}.img`);
    writeFileSync(image, "");
    truncateSync(image, SIZE);
    const machine = await EmbeddedMachine.create();
    const guest = await machine.createDomain(GUEST, { shared: true, memoryPages: 4096 });
    await machine.domainTicket(BACKEND, "process");
    const { path, environment } = await unpacked("qemu-system-xen");
    const log = join(scratch, `${name}.log`);
    const output = openSync(log, "w");
    const words =
      "-machine xenpv -xen-attach -nographic -nodefaults -no-user-config -monitor none -serial none";
    const qemu = spawn(
      path("usr/libexec/xen-qemu-system-i386"),
      [...words.split(" "), "-xen-domid", String(GUEST)],
      {
        env: {
          ...environment,
          LD_PRELOAD: shim,
          VBDKIT_DIRECTORY: machine.directory,
          VBDKIT_DOMID: String(BACKEND),
          XENSTORED_PATH: join(machine.directory, `domain-${BACKEND}`, "xenstored.sock"),
        },
        stdio: ["ignore", output, output],
      },
    );
    closeSync(output);
    return new QemuWorld(image, machine, guest, qemu, log);
  }

  async connect(): Promise<BlockFrontend> {
    await using store = new XenStoreClient(this.machine.xenstore.connect(BACKEND));
    await createDomainNodes(store, BACKEND, "Domain-0");
    await createDomainNodes(store, GUEST, "guest");
    const paths = await createVbd(store, {
      frontendDomid: GUEST,
      backendDomid: BACKEND,
      vdev: 51712,
      readOnly: false,
      params: `raw:${this.image}`,
      kind: "qdisk",
    });
    await store.write(`${paths.backend}/type`, "qdisk");
    await store.write(`${paths.backend}/direct-io-safe`, "0");
    try {
      return await BlockFrontend.connect(this.guest, paths.frontend, {
        clock: systemClock,
        signal: AbortSignal.timeout(20_000),
      });
    } catch (error) {
      throw new Error(`QEMU said: ${readFileSync(this.#log, "utf8")}`, { cause: error });
    }
  }

  /** SIGKILL, and what whoever started a domain does then. */
  async kill(): Promise<void> {
    this.#qemu.kill("SIGKILL");
    await this.#exit;
    await this.machine.destroyDomain(BACKEND);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.machine[Symbol.asyncDispose]();
  }
}

test("QEMU's backend does what our frontend asks, and lets go of everything", async () => {
  await using world = await QemuWorld.start("works");
  const frontend = await world.connect();
  assert.equal(frontend.info.size, SIZE);
  const disk = new Disk(frontend, world.guest.reactor);
  const data = Buffer.from(Array.from({ length: 2 ** 20 }, (_, i) => (i * 7919) >>> 5));
  await disk.write(4096, data);
  await disk.flush();
  assert.ok(
    readFileSync(world.image)
      .subarray(4096, 4096 + data.length)
      .equals(data),
  );
  assert.ok(Buffer.from(await disk.read(4096, data.length)).equals(data));
  await disk.discard(4096, 2 ** 20);
  assert.ok((await disk.read(0, 2 ** 20)).every((byte) => byte === 0));
  assert.ok(world.guest.events.counters.delivered > 0);
  await frontend[Symbol.asyncDispose]();
  const { granted, quarantined } = world.guest.grants.counters;
  assert.deepEqual([granted, quarantined], [0, 0]);
});

test("QEMU that is killed under a connected ring leaves the guest its pages", async () => {
  await using world = await QemuWorld.start("killed");
  const frontend = await world.connect();
  const disk = new Disk(frontend, world.guest.reactor);
  await disk.write(0, Buffer.alloc(65536, 1));
  assert.ok(world.guest.grants.counters.granted > 0);
  await world.kill();
  await frontend.cancel();
  await frontend[Symbol.asyncDispose]();
  await until(() => world.guest.grants.counters.granted === 0);
  assert.equal(world.guest.grants.counters.quarantined, 0);
});
