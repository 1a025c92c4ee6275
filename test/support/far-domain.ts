/**
 * A domain of another thread or process, and who tells it what to do: run as a worker or forked, this file joins the
 * machine with the ticket it is sent and answers calls; imported, it is the caller's side.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { Reactor } from "../../src/io/reactor.ts";
import { type EventChannel, GrantMapBatch, PAGE_SIZE, XenError } from "../../src/xen/domain.ts";
import {
  type DomainTicket,
  type EmbeddedDomain,
  joinMachine,
  type PortStatus,
} from "../../src/xen/embedded/index.ts";

/** What the far domain can be asked for. Pages and channels are numbered in the order they were made. */
class FarDomain {
  readonly #domain: EmbeddedDomain;
  readonly #pages: Uint8Array[] = [];
  readonly #channels: EventChannel[] = [];
  /** Events of each channel that was offered or bound. */
  readonly #heard: number[] = [];

  constructor(domain: EmbeddedDomain) {
    this.#domain = domain;
  }

  /** Returns the status and the handle. */
  map(peer: number, reference: number, readOnly: number): number[] {
    const batch = new GrantMapBatch(1);
    batch.count = 1;
    batch.references[0] = reference;
    batch.readOnly[0] = readOnly;
    this.#domain.grants.map(peer, batch);
    const start = batch.starts[0]!;
    const bytes = batch.regions[0]?.bytes.subarray(start, start + PAGE_SIZE);
    if (batch.statuses[0] === 0) this.#pages.push(bytes!);
    return [batch.statuses[0]!, batch.handles[0]!];
  }

  unmap(handle: number): number {
    return this.#domain.grants.unmap(handle);
  }

  /** Grants a page of its own and returns the reference. */
  share(peer: number): number {
    const pages = this.#domain.grants.allocate(1)!;
    pages.grant(0, peer, false);
    this.#pages.push(pages.region.bytes.subarray(pages.start, pages.start + PAGE_SIZE));
    return pages.references[0]!;
  }

  peek(page: number, index: number): number {
    return this.#pages[page]![index]!;
  }

  poke(page: number, index: number, value: number): void {
    this.#pages[page]![index] = value;
  }

  /** From then on answers each event of the port by raising byte 0 of page 0 by one, and an event. */
  echo(peer: number, port: number): void {
    const channel = this.#domain.events.bindInterdomain(peer, port);
    let first = true;
    channel.onevent = () => {
      // The event of the binding is nobody's question.
      if (!first) this.#pages[0]![0]!++;
      if (!first) channel.notify();
      first = false;
    };
    this.#channels.push(channel);
  }

  bind(peer: number, port: number): number {
    return this.#keep(this.#domain.events.bindInterdomain(peer, port)).port;
  }

  offer(peer: number): number {
    return this.#keep(this.#domain.events.allocateUnbound(peer)).port;
  }

  #keep(channel: EventChannel): EventChannel {
    const number = this.#channels.push(channel) - 1;
    this.#heard[number] = 0;
    channel.onevent = () => this.#heard[number]!++;
    return channel;
  }

  notify(channel: number): void {
    this.#channels[channel]!.notify();
  }

  mask(channel: number): void {
    this.#channels[channel]!.mask();
  }

  unmask(channel: number): void {
    this.#channels[channel]!.unmask();
  }

  closePort(channel: number): void {
    this.#channels[channel]![Symbol.dispose]();
  }

  reset(): void {
    this.#domain.events.reset();
  }

  /** Of as many ports from the first. */
  statuses(count: number): PortStatus[] {
    return Array.from({ length: count }, (_, port) => this.#domain.events.status(port));
  }

  heard(): number[] {
    return this.#heard;
  }

  /** Of all channels. */
  events(): number {
    return this.#heard.reduce((sum, each) => sum + each, 0);
  }

  mapped(): number {
    return this.#domain.grants.counters.mapped;
  }

  async write(path: string, value: string): Promise<void> {
    await this.#domain.store.write(path, value);
  }

  async read(path: string): Promise<string | undefined> {
    return await this.#domain.store.read(path);
  }

  async close(): Promise<void> {
    await this.#domain[Symbol.asyncDispose]();
  }
}

type Method = Exclude<keyof FarDomain, symbol>;
type Call = { readonly method: Method; readonly parameters: (number | string)[] };
type Answer =
  | { readonly value: unknown }
  | { readonly error: string; readonly code?: string | undefined };

async function serve(
  ticket: DomainTicket,
  receive: (onmessage: (call: Call) => void) => void,
  send: (answer: Answer) => void,
  end: () => void,
): Promise<void> {
  const reactor = new Reactor();
  const far = new FarDomain(await joinMachine(ticket, reactor));
  receive(({ method, parameters }) => {
    const call = async (): Promise<void> => {
      const body = far[method] as (...parameters: (number | string)[]) => unknown;
      send({ value: await body.apply(far, parameters) });
      reactor.settle();
      if (method === "close") end();
    };
    call().catch((error: unknown) => {
      send({ error: String(error), code: error instanceof XenError ? error.code : undefined });
    });
  });
  send({ value: "joined" });
}

/** The near side. */
export class Far implements AsyncDisposable {
  readonly #runner: Worker | ChildProcess;
  readonly #exit: Promise<unknown>;

  private constructor(runner: Worker | ChildProcess) {
    this.#runner = runner;
    this.#exit = once(runner, "exit");
  }

  /** Resolves when the domain has joined. */
  static async start(ticket: DomainTicket): Promise<Far> {
    const far = new Far(
      ticket.where === "worker"
        ? new Worker(new URL(import.meta.url), {
            workerData: { farDomain: ticket },
            transferList: ticket.transferList,
          })
        : fork(new URL(import.meta.url), [JSON.stringify({ farDomain: ticket })], {
            execArgv: process.execArgv.filter((argument) => !argument.startsWith("--test")),
          }),
    );
    await far.#answer();
    return far;
  }

  get pid(): number | undefined {
    return this.#runner instanceof Worker ? undefined : this.#runner.pid;
  }

  async call(method: Method, ...parameters: (number | string)[]): Promise<unknown> {
    const call: Call = { method, parameters };
    const answer = this.#answer();
    if (this.#runner instanceof Worker) this.#runner.postMessage(call);
    else this.#runner.send(call, () => {});
    return await answer;
  }

  async #answer(): Promise<unknown> {
    const [answer] = (await Promise.race([
      once(this.#runner, "message"),
      this.#exit.then(() => [{ error: "the far domain has ended" }]),
    ])) as [Answer];
    if ("error" in answer) {
      throw Object.assign(new Error(answer.error), { code: answer.code });
    }
    return answer.value;
  }

  /** SIGKILL, or what is nearest to it. */
  async kill(): Promise<void> {
    if (this.#runner instanceof Worker) await this.#runner.terminate();
    else this.#runner.kill("SIGKILL");
    await this.#exit;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  /** Resolves when it has ended by itself. */
  async ended(): Promise<void> {
    await this.#exit;
  }
}

const given = isMainThread
  ? (process.argv[2] ?? "").startsWith('{"farDomain"')
    ? (JSON.parse(process.argv[2]!) as { farDomain: DomainTicket })
    : undefined
  : (workerData as { farDomain?: DomainTicket } | null);
if (given?.farDomain !== undefined) {
  const port = parentPort;
  if (port !== null) {
    await serve(
      given.farDomain,
      (onmessage) => port.on("message", onmessage),
      (answer) => port.postMessage(answer),
      () => port.close(),
    );
  } else {
    await serve(
      given.farDomain,
      (onmessage) => process.on("message", onmessage),
      (answer) => process.send!(answer),
      () => process.disconnect?.(),
    );
  }
}
