/**
 * A xenstore daemon in a process of its own, whose guests' rings are memory of the process that started it: run, this
 * file is the daemon; imported, it is the guests' side, from which the daemon can be killed and started again.
 */
import { type ChildProcess, execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import { createSharedMemory, openSharedMemory } from "../../src/io/shared-memory.ts";
import { type EventChannel, PAGE_SIZE } from "../../src/xen/domain.ts";
import { XenStoreClient } from "../../src/xen/xenstore/client.ts";
import { XenStoreDaemon } from "../../src/xen/xenstore/daemon.ts";

interface Orders {
  readonly file: string;
  /** The pages of the rings, of domains 1, 2 and so on. */
  readonly memory: string;
  readonly domains: number;
}

/** An event is a message between the two processes. */
class Channel implements EventChannel {
  readonly sharesThread = true;
  readonly port: number;
  onevent: (() => void) | undefined;
  readonly #send: (port: number) => void;

  constructor(port: number, send: (port: number) => void) {
    this.port = port;
    this.#send = send;
  }

  notify(): void {
    this.#send(this.port);
  }

  mask(): void {}

  unmask(): void {}

  [Symbol.dispose](): void {
    this.onevent = undefined;
  }
}

function channels(domains: number, send: (port: number) => void): Channel[] {
  return Array.from({ length: domains }, (_, i) => new Channel(i + 1, send));
}

function pageOf(memory: Uint8Array, domid: number): Uint8Array {
  return memory.subarray((domid - 1) * PAGE_SIZE, domid * PAGE_SIZE);
}

async function serve({ file, memory, domains }: Orders): Promise<void> {
  const { region } = openSharedMemory(memory);
  const ports = channels(domains, (port) => process.send?.(port));
  process.on("message", (port: number) => ports[port - 1]?.onevent?.());
  // Else the kernel ends the process whose files may be no longer.
  process.on("SIGXFSZ", () => {});
  const daemon = new XenStoreDaemon({
    state: { file, onNote: (line) => process.send?.(line) },
    openRing: (domid, port) => ({
      page: pageOf(region.bytes, domid),
      channel: ports[port - 1]!,
      [Symbol.dispose]: () => ports[port - 1]![Symbol.dispose](),
    }),
  });
  const zero = new XenStoreClient(daemon.connect(0));
  for (let domid = 1; domid <= domains; domid++) {
    if (daemon.isIntroduced(domid)) continue;
    const home = `/local/domain/${domid}`;
    await zero.mkdir(home);
    await zero.setPermissions(home, [{ domid, access: "read" }]);
    daemon.introduce(domid, domid);
  }
  process.on("SIGTERM", () => void daemon[Symbol.asyncDispose]().then(() => process.exit()));
  process.send?.("serves");
}

/** The daemon of one state after the other, and the rings of its guests. */
export class StoreDaemon implements AsyncDisposable {
  /** Lines for people. */
  readonly notes: string[] = [];
  readonly #orders: Omit<Orders, "memory">;
  readonly #memory: ReturnType<typeof createSharedMemory>;
  readonly #channels: Channel[];
  #child: ChildProcess | undefined;

  constructor(orders: Omit<Orders, "memory">) {
    this.#orders = orders;
    this.#memory = createSharedMemory("rings", orders.domains * PAGE_SIZE);
    this.#channels = channels(orders.domains, (port) => {
      // To a daemon that is no more it goes nowhere, as an event does.
      if (this.#child?.connected) this.#child.send(port, () => {});
    });
  }

  ring(domid: number): { page: Uint8Array; channel: EventChannel } {
    const page = pageOf(this.#memory.region.bytes, domid);
    return { page, channel: this.#channels[domid - 1]! };
  }

  /** Resolves when it serves. */
  async start(): Promise<void> {
    const memory = `/proc/${process.pid}/fd/${this.#memory.descriptor}`;
    const orders = JSON.stringify({ storeDaemon: { ...this.#orders, memory } });
    const child = fork(new URL(import.meta.url), [orders], { execArgv: [...process.execArgv] });
    this.#child = child;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    child.on("message", (heard: number | string) => {
      if (typeof heard === "number") this.#channels[heard - 1]?.onevent?.();
      else if (heard === "serves") resolve();
      else this.notes.push(heard);
    });
    child.once("exit", (code) => reject(new Error(`the daemon ended with ${code}`)));
    await promise;
  }

  /** Its files may have that many bytes from now on: to it, the disk is full then. */
  limitFiles(bytes: number | "unlimited"): void {
    execFileSync("prlimit", [`--pid=${this.#child!.pid}`, `--fsize=${bytes}:`]);
  }

  async end(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end("SIGKILL");
    this.#memory.region[Symbol.dispose]();
  }
}

if (process.argv[2]?.startsWith('{"storeDaemon"')) {
  const orders = (JSON.parse(process.argv[2]) as { storeDaemon: Orders }).storeDaemon;
  await serve(orders);
}
