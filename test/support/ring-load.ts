/** ring-load.c, the frontend in C, as a process; and a backend of ours for it. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { BlockBackend } from "../../src/block/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { openStore, type StoreSpec } from "../../src/store/index.ts";
import { type Domain, EmbeddedMachine } from "../../src/xen/index.ts";
import { createDomainNodes, createVbd } from "../../src/xen/toolstack.ts";

const source = join(import.meta.dirname, "ring-load.c");

export async function buildRingLoad(program: string): Promise<void> {
  const words = ["-O2", "-Wall", "-Werror", "-o", program, source, "-lxenstore"];
  await promisify(execFile)("gcc", words);
}

/** A vbd that waits for the frontend in C. */
export interface RingLoadVbd {
  /** The machine's folder. */
  readonly directory: string;
  /** Of the guest. */
  readonly domid: number;
  /** The frontend's directory in the xenstore. */
  readonly frontendPath: string;
}

export interface RingLoadOptions {
  /** Of the ring's pages; 0 if absent. */
  readonly order?: number;
  /** Offers persistent grants; so if absent. */
  readonly persistent?: boolean;
}

export interface Measured {
  readonly iops: number;
  readonly requestsPerEvent: number;
}

export class RingLoad implements AsyncDisposable {
  /** In the first pass over the disk, before any load. */
  readonly verifiedRequests: number;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #complaints: () => string;

  /** Resolves when the frontend has connected and verified the disk, which holds what it wrote then. */
  static async start(
    program: string,
    { directory, domid, frontendPath }: RingLoadVbd,
    { order = 0, persistent = true }: RingLoadOptions = {},
  ): Promise<RingLoad> {
    const words = [directory, domid, frontendPath, order, Number(persistent)];
    const child = spawn(program, words.map(String), { stdio: "pipe" });
    // Who ended leaves a pipe without a reader; its last words say why.
    child.stdin.on("error", () => {});
    let complaints = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      complaints += text;
    });
    const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
    const answer = await answerOf(lines, () => complaints);
    const { verifiedRequests } = answer as { verifiedRequests: number };
    return new RingLoad(child, lines, () => complaints, verifiedRequests);
  }

  private constructor(
    child: ChildProcess,
    lines: AsyncIterator<string>,
    complaints: () => string,
    verifiedRequests: number,
  ) {
    this.#child = child;
    this.#lines = lines;
    this.#complaints = complaints;
    this.verifiedRequests = verifiedRequests;
  }

  /** So many requests of so many pages at once, for so long, and what each page holds looked at. */
  async load(
    operation: "read" | "write",
    pages: number,
    depth: number,
    seconds: number,
  ): Promise<Measured> {
    this.#child.stdin!.write(`${operation} ${pages} ${depth} ${seconds}\n`);
    return (await answerOf(this.#lines, this.#complaints)) as Measured;
  }

  /** Both ends close. Rejects where that failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    const child = this.#child;
    const closed = child.exitCode === null ? once(child, "close") : undefined;
    child.stdin!.end();
    await closed;
    if (child.exitCode !== 0) throw new Error(`the frontend in C failed: ${this.#complaints()}`);
  }
}

async function answerOf(lines: AsyncIterator<string>, complaints: () => string): Promise<unknown> {
  const { value, done } = await lines.next();
  if (done) throw new Error(`the frontend in C ended: ${complaints()}`);
  return JSON.parse(value);
}

const GUEST = 7;

/** Our backend, in this process, of a guest that the frontend in C is. */
export class RingLoadBackend implements RingLoadVbd, AsyncDisposable {
  readonly directory: string;
  readonly domid: number = GUEST;
  readonly frontendPath: string;
  readonly dom0: Domain;
  readonly backend: BlockBackend;
  readonly #ends: AsyncDisposableStack;

  static async open(disk: string | StoreSpec): Promise<RingLoadBackend> {
    await using stack = new AsyncDisposableStack();
    const reactor = new Reactor();
    const machine = stack.use(await EmbeddedMachine.create({ reactor }));
    const dom0 = await machine.createDomain(0, { shared: true });
    await machine.domainTicket(GUEST, "process");
    await createDomainNodes(dom0.store, 0, "Domain-0");
    await createDomainNodes(dom0.store, GUEST, "c-frontend");
    const paths = await createVbd(dom0.store, {
      frontendDomid: GUEST,
      backendDomid: 0,
      vdev: 51712,
      readOnly: false,
      params: "",
    });
    const store = await openStore(disk, { reactor });
    const backend = stack.use(await BlockBackend.open(dom0, paths.backend, store));
    return new RingLoadBackend(machine.directory, paths.frontend, dom0, backend, stack.move());
  }

  private constructor(
    directory: string,
    frontendPath: string,
    dom0: Domain,
    backend: BlockBackend,
    ends: AsyncDisposableStack,
  ) {
    this.directory = directory;
    this.frontendPath = frontendPath;
    this.dom0 = dom0;
    this.backend = backend;
    this.#ends = ends;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}
