/** QEMU's own xen-block backend without Xen: the shim makes it a domain of an embedded machine. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BlockFrontend, type FrontendLimits } from "../../src/block/index.ts";
import { systemClock } from "../../src/util/clock.ts";
import {
  createDomainNodes,
  createVbd,
  type Domain,
  EmbeddedMachine,
  removeVbd,
  type VbdPaths,
  XenStoreClient,
} from "../../src/xen/index.ts";
import { unpacked } from "./debian.ts";

/** Bytes of an image, where nothing else is said. */
export const QEMU_IMAGE_BYTES: number = 16 * 2 ** 20;
export const GUEST = 1;
/** QEMU looks for its devices below domain 0. */
export const QEMU = 0;
/** xvda; the next is 16 further. */
const FIRST_VDEV = 51712;

const source = join(import.meta.dirname, "qemu-xen-block-shim.c");

/** A machine with a guest, and QEMU as its domain 0. */
export class QemuWorld implements AsyncDisposable {
  readonly machine: EmbeddedMachine;
  readonly #guest: Domain | undefined;
  readonly #scratch: string;
  readonly #store: XenStoreClient;
  readonly #qemu: ChildProcess;
  readonly #exit: Promise<unknown>;
  #devices = 0;

  private constructor(
    scratch: string,
    machine: EmbeddedMachine,
    guest: Domain | undefined,
    store: XenStoreClient,
    qemu: ChildProcess,
  ) {
    this.#scratch = scratch;
    this.machine = machine;
    this.#guest = guest;
    this.#store = store;
    this.#qemu = qemu;
    this.#exit = once(qemu, "exit");
  }

  /** The guest is a domain of this process, or of another program, which needs the machine's folder alone. */
  static async start(where: "here" | "process" = "here"): Promise<QemuWorld> {
    const scratch = mkdtempSync(join(tmpdir(), "vbdkit-qemu-"));
    const shim = join(scratch, "shim.so");
    execFileSync("gcc", ["-shared", "-fPIC", "-O2", "-o", shim, source, "-lpthread"]);
    const machine = await EmbeddedMachine.create();
    const guest =
      where === "here"
        ? await machine.createDomain(GUEST, { shared: true, memoryPages: 4096 })
        : undefined;
    if (where === "process") await machine.domainTicket(GUEST, "process");
    await machine.domainTicket(QEMU, "process");
    const store = new XenStoreClient(machine.xenstore.connect(QEMU));
    await createDomainNodes(store, QEMU, "Domain-0");
    await createDomainNodes(store, GUEST, "guest");
    const { path, environment } = await unpacked("qemu-system-xen");
    const output = openSync(join(scratch, "log"), "w");
    const words =
      "-machine xenpv -xen-attach -nographic -nodefaults -no-user-config -monitor none -serial none";
    const qemu = spawn(
      path("usr/libexec/xen-qemu-system-i386"),
      [
        ...[...words.split(" "), "-xen-domid", String(GUEST)],
        ...["-qmp", `unix:${join(scratch, "qmp")},server=on,wait=off`],
      ],
      {
        env: {
          ...environment,
          LD_PRELOAD: shim,
          VBDKIT_DIRECTORY: machine.directory,
          VBDKIT_DOMID: String(QEMU),
          XENSTORED_PATH: join(machine.directory, `domain-${QEMU}`, "xenstored.sock"),
        },
        stdio: ["ignore", output, output],
      },
    );
    closeSync(output);
    return new QemuWorld(scratch, machine, guest, store, qemu);
  }

  get guest(): Domain {
    if (this.#guest === undefined) throw new Error("the guest is a process of its own");
    return this.#guest;
  }

  /** A fresh image of zeroes. */
  image(name: string): string {
    const image = join(this.#scratch, `${name}.img`);
    writeFileSync(image, "");
    truncateSync(image, QEMU_IMAGE_BYTES);
    return image;
  }

  /** The nodes of another vbd, which QEMU serves from the image. */
  async plug(image: string): Promise<VbdPaths> {
    const paths = await createVbd(this.#store, {
      frontendDomid: GUEST,
      backendDomid: QEMU,
      vdev: FIRST_VDEV + 16 * this.#devices++,
      readOnly: false,
      params: `raw:${image}`,
      kind: "qdisk",
    });
    await this.#store.write(`${paths.backend}/type`, "qdisk");
    await this.#store.write(`${paths.backend}/direct-io-safe`, "0");
    return paths;
  }

  /** Removes the nodes of a vbd whose ends have closed. */
  async unplug(paths: VbdPaths): Promise<void> {
    await removeVbd(this.#store, paths);
  }

  /** Our frontend on a vbd. */
  async connect(paths: VbdPaths, limits: Partial<FrontendLimits> = {}): Promise<BlockFrontend> {
    try {
      return await BlockFrontend.connect(this.guest, paths.frontend, {
        clock: systemClock,
        limits,
        signal: AbortSignal.timeout(20_000),
      });
    } catch (error) {
      throw new Error(`QEMU said: ${this.log}`, { cause: error });
    }
  }

  get log(): string {
    return readFileSync(join(this.#scratch, "log"), "utf8");
  }

  /** Runs a QMP command and returns what it returned. */
  async qmp(execute: string, words: object = {}): Promise<unknown> {
    const path = join(this.#scratch, "qmp");
    while (!existsSync(path)) await new Promise((resolve) => setTimeout(resolve, 20));
    const socket = connect(path);
    let text = "";
    const commands = [{ execute: "qmp_capabilities" }, { execute, arguments: words }];
    try {
      for await (const chunk of socket.setEncoding("utf8")) {
        text += chunk;
        const lines = text
          .split("\n")
          .slice(0, -1)
          .map((line) => JSON.parse(line));
        const answers = lines.filter((line) => "return" in line || "error" in line);
        const last = answers.at(-1);
        if (last !== undefined && "error" in last) throw new Error(last.error.desc);
        if (answers.length === commands.length) return last.return;
        const sent = answers.length;
        if (lines.length === sent + 1) socket.write(`${JSON.stringify(commands[sent])}\n`);
      }
    } finally {
      socket.destroy();
    }
    throw new Error("QEMU closed its QMP socket");
  }

  /** SIGKILL, and what whoever started a domain does then. */
  async kill(): Promise<void> {
    this.#qemu.kill("SIGKILL");
    await this.#exit;
    await this.machine.destroyDomain(QEMU);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.machine[Symbol.asyncDispose]();
    rmSync(this.#scratch, { recursive: true });
  }
}
