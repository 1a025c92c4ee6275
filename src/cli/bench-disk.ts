/** Measures one disk, itself or through frontend, ring and backend, and tells of it as plain data. */
import type { AttachedDisk, AttachmentInformation, Link, Negotiated } from "../index.ts";
import type { Reactor } from "../io/reactor.ts";
import type { BlockStore, BlockStoreInfo } from "../store/block-store.ts";
import type {
  LatencyHistogram,
  LatencyOctave,
  LatencySummary,
} from "../trace/latency-histogram.ts";
import { formatSize } from "../util/size.ts";
import { BenchLoad } from "./bench-load.ts";
import type { BenchPlan, BenchWorkload } from "./bench-plan.ts";
import { UsageError } from "./errors.ts";
import { Leftovers } from "./leftovers.ts";

/** What `vbdkit bench --json` prints. */
export interface BenchResult {
  /** As typed. */
  readonly disk: string;
  /** Bytes. */
  readonly size: number;
  readonly engine: string | undefined;
  readonly workload: BenchWorkload & {
    /** Of the disk that was used, from its beginning. */
    readonly bytes: number;
  };
  /** undefined where the disk itself was measured. */
  readonly ring: BenchRing | undefined;
  /** That were measured. */
  readonly seconds: number;
  /** Somebody asked to stop before the time was over. */
  readonly stopped: boolean;
  /** undefined where there were to be none. */
  readonly reads: BenchRequests | undefined;
  readonly writes: BenchRequests | undefined;
  /** Of this process: a worker's is in it, that of `--link process` and of servers elsewhere is not. */
  readonly processor: {
    readonly userSeconds: number;
    readonly systemSeconds: number;
    readonly microsecondsPerRequest: number;
  };
}

export interface BenchRequests {
  readonly requests: number;
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly latencyMicroseconds: LatencySummary;
  /** By powers of two of microseconds. */
  readonly histogramMicroseconds: readonly LatencyOctave[];
}

export interface BenchRing {
  readonly link: Link;
  readonly negotiated: Negotiated;
  /** Commands on the ring and events of both ends for a request: fewer where neighbours are joined and batches made. */
  readonly commandsPerRequest: number;
  readonly eventsPerRequest: number;
}

/** A disk that is open to be measured once. Disposal ends what is in flight and closes it. */
export class BenchDisk implements AsyncDisposable {
  readonly #plan: BenchPlan;
  readonly #opened: OpenedDisk;
  readonly #bytes: number;
  readonly #load: BenchLoad;
  readonly #ends: AsyncDisposableStack;

  /** `signal` ends opening. Throws UsageError where the disk cannot do what the plan wants. */
  static async open(plan: BenchPlan, signal: AbortSignal): Promise<BenchDisk> {
    await using stack = new AsyncDisposableStack();
    const opened = stack.use(
      await (plan.ring === undefined ? openAlone : openBehindRing)(plan, signal),
    );
    const { store, reactor } = opened;
    const bytes = bytesOf(plan, store.info);
    const { blockBytes } = plan.workload;
    const { emulate } = await import("../index.ts");
    const whole = blockBytes > store.info.block.maximum ? emulate(store, reactor) : store;
    const load = stack.use(new BenchLoad(whole, reactor, plan.workload, bytes));
    stack.defer(() => whole.cancel(new Error("it was measured")));
    return new BenchDisk(plan, opened, bytes, load, stack.move());
  }

  private constructor(
    plan: BenchPlan,
    opened: OpenedDisk,
    bytes: number,
    load: BenchLoad,
    ends: AsyncDisposableStack,
  ) {
    this.#plan = plan;
    this.#opened = opened;
    this.#bytes = bytes;
    this.#load = load;
    this.#ends = ends;
  }

  /** Requests that were answered since measuring began. */
  get requests(): number {
    return this.#load.reads.count + this.#load.writes.count;
  }

  /** In which they were. */
  get milliseconds(): number {
    return this.#load.milliseconds;
  }

  /** Requests that the disk has not answered. */
  async inFlight(): Promise<number> {
    return this.#load.inFlight;
  }

  /** Resolves when the plan's time is over or `signal` aborts. Rejects with a StoreError where a request failed. */
  async measure(signal: AbortSignal): Promise<BenchResult> {
    const { text, workload, rampMilliseconds, runtimeMilliseconds } = this.#plan;
    const { store, attached } = this.#opened;
    const load = this.#load;
    const before = await attached?.information();
    await load.run(rampMilliseconds, runtimeMilliseconds, signal);
    const { user, system } = load.usage;
    const { requests } = this;
    const reads = this.#told(load.reads);
    const writes = this.#told(load.writes);
    const after = await attached?.information();
    return {
      disk: text,
      size: store.info.size,
      engine: after === undefined ? store.info.engine : after.backend.store.engine,
      workload: { ...workload, bytes: this.#bytes },
      ring: after && ringOf(before!, after, load.answered),
      seconds: load.milliseconds / 1000,
      stopped: signal.aborted,
      reads: workload.readPercent > 0 ? reads : undefined,
      writes: workload.readPercent < 100 ? writes : undefined,
      processor: {
        userSeconds: user / 1e6,
        systemSeconds: system / 1e6,
        microsecondsPerRequest: requests === 0 ? 0 : (user + system) / requests,
      },
    };
  }

  #told(histogram: LatencyHistogram): BenchRequests {
    const { milliseconds } = this.#load;
    const iops = milliseconds > 0 ? (histogram.count / milliseconds) * 1000 : 0;
    return {
      requests: histogram.count,
      iops,
      bytesPerSecond: iops * this.#plan.workload.blockBytes,
      latencyMicroseconds: histogram.summary,
      histogramMicroseconds: histogram.octaves(),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}

interface OpenedDisk extends AsyncDisposable {
  readonly store: BlockStore;
  readonly reactor: Reactor;
  /** Where it is behind a ring. */
  readonly attached?: AttachedDisk;
}

async function openAlone(
  { spec, engine, workload }: BenchPlan,
  signal: AbortSignal,
): Promise<OpenedDisk> {
  const { openStore, threadReactor } = await import("../index.ts");
  const readOnly = workload.readPercent === 100;
  const store = await openStore(spec, { readOnly, engine, signal });
  return {
    store,
    reactor: threadReactor(),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

async function openBehindRing(
  { spec, ring, workload }: BenchPlan,
  signal: AbortSignal,
): Promise<OpenedDisk> {
  const { Machine } = await import("../index.ts");
  await using stack = new AsyncDisposableStack();
  const leftovers = stack.use(new Leftovers(undefined));
  const machine = stack.use(await Machine.start());
  leftovers.addFolder(machine.directory);
  leftovers.addSocket(machine.xenstoreSocket);
  const readOnly = workload.readPercent === 100;
  const attached = await machine.attach(spec, { ...ring, vdev: "xvda", readOnly, signal });
  const ends = stack.move();
  return {
    store: attached.frontend,
    reactor: machine.reactor,
    attached,
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

/** Bytes of the disk that are used. Throws UsageError where it cannot be used so. */
function bytesOf({ text, bytes, workload }: BenchPlan, info: BlockStoreInfo): number {
  const { blockBytes, readPercent } = workload;
  if (readPercent < 100 && info.readOnly) throw new UsageError(`${text} is read-only`);
  if (bytes !== undefined && bytes > info.size) {
    throw new UsageError(`--size: ${text} has ${formatSize(info.size)}`);
  }
  const { minimum } = info.block;
  if (blockBytes % minimum !== 0) {
    throw new UsageError(`--bs: ${text} has blocks of ${minimum} bytes; write a multiple of that`);
  }
  const used = bytes ?? info.size;
  if (used < blockBytes) {
    throw new UsageError(`--bs: there are ${formatSize(used)} to measure, less than one request`);
  }
  return used;
}

function ringOf(
  before: AttachmentInformation,
  { link, negotiated, frontend, backend }: AttachmentInformation,
  requests: number,
): BenchRing {
  const commands = frontend.requests - before.frontend.requests;
  const sent = frontend.events.sent + backend.events.sent;
  const events = sent - before.frontend.events.sent - before.backend.events.sent;
  return {
    link,
    negotiated,
    commandsPerRequest: requests === 0 ? 0 : commands / requests,
    eventsPerRequest: requests === 0 ? 0 : events / requests,
  };
}
