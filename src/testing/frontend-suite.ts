/**
 * What any frontend of a vbd must do, as tests of node:test: it meets a scripted backend that speaks as each of the
 * backends of twenty years does, and one that lies, goes away, or says nothing.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import type { DialectName } from "../block/features.ts";
import type { Reactor } from "../io/reactor.ts";
import type { BlockStore } from "../store/block-store.ts";
import { emulate } from "../store/emulate.ts";
import { Errno } from "../store/errors.ts";
import { SeededRandom } from "../util/random.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  type BlkifRequest,
} from "../wire/blkif.ts";
import type { Domain } from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import { type BackendDialect, backendDialects } from "./backend-dialects.ts";
import { frontendLies } from "./frontend-suite-lies.ts";
import { largeSectors } from "./frontend-suite-sectors.ts";
import { RequestRunner } from "./requests.ts";
import { ScriptedBackend } from "./scripted-backend.ts";
import { shows } from "./shows.ts";
import { runModel } from "./store-model.ts";
import { until } from "./vbd-pair.ts";

/** The directories of a vbd whose frontend waits to be started; disposal ends what it stands on. */
export interface OpenedFrontend extends AsyncDisposable {
  /** Where the scripted backend lives. */
  readonly backendDomain: Domain;
  readonly frontendDomid: number;
  /** Of the frontend's domain. */
  readonly reactor: Reactor;
  readonly paths: VbdPaths;
  /** Starts the frontend; resolves with its disk once it is connected, or rejects. Called once. Disposal of the disk
   * closes the device. */
  connect(): Promise<BlockStore>;
  /** Grants and ports that the frontend's domain has still. Absent where it cannot be asked. */
  leftovers?(): number;
}

export interface FrontendSuiteOptions {
  /** A fresh vbd each time, for a frontend that counts as the dialect says where logical sectors have 4096 bytes. */
  open(dialect: DialectName): Promise<OpenedFrontend>;
  /** The dialects that it can be told to count in; "spec" alone if absent. */
  readonly dialects?: readonly DialectName[];
  /** It uses whatever a backend offers: not to do so fails a test, which otherwise passes and shows nothing. */
  readonly complete?: boolean;
  /** Of the random tests; another one each time if absent. */
  readonly seed?: number;
}

/** A test that takes longer hangs: some wait until a frontend gives a dead backend up. */
const TIMEOUT_MILLISECONDS = 40_000;
const DISK_BYTES = 2 ** 20;

/** Registers one test of a suite, which has a bench of its own. */
export type FrontendTest = (
  rows: readonly string[],
  sentence: string,
  body: (bench: FrontendBench) => Promise<unknown>,
  /** Of the frontend; "spec" if absent. */
  dialect?: DialectName,
) => void;

export class FrontendBench implements AsyncDisposable {
  readonly opened: OpenedFrontend;
  readonly backend: ScriptedBackend;
  /** What the scripted backend serves. */
  readonly disk: Uint8Array = new Uint8Array(DISK_BYTES);
  #store: BlockStore | undefined;
  readonly #runners: RequestRunner[] = [];

  constructor(opened: OpenedFrontend) {
    this.opened = opened;
    this.backend = new ScriptedBackend(opened.backendDomain, opened.paths);
    this.backend.onrequest = (request, queue) => this.serve(request, queue);
  }

  serve(request: BlkifRequest, queue = 0, errorStatus = -1): void {
    this.backend.answer(request, this.backend.execute(request, this.disk, errorStatus), queue);
  }

  /** Connects both; the frontend's disk, with every operation. */
  async connect(keys: Readonly<Record<string, string>> = {}): Promise<RequestRunner> {
    const size = { sectors: String(DISK_BYTES / 512), "sector-size": "512", info: "0" };
    const connecting = this.start();
    await this.backend.connect(this.opened.frontendDomid, { ...size, ...keys });
    return await connecting;
  }

  /** Starts the frontend. */
  async start(): Promise<RequestRunner> {
    const connecting = this.opened.connect();
    connecting.catch(() => {});
    this.#store = await connecting;
    const { reactor } = this.opened;
    const runner = new RequestRunner(emulate(this.#store, reactor), reactor);
    this.#runners.push(runner);
    return runner;
  }

  get store(): BlockStore {
    return this.#store!;
  }

  /** Waits until the frontend closes, lets go of its pages and closes, too. */
  async follow(): Promise<void> {
    await this.backend.frontendIs(5, 6);
    this.backend.detach();
    await this.backend.become(6);
  }

  /** Closes the frontend as an honest backend has it. */
  async close(): Promise<void> {
    if (this.#store === undefined) return;
    const closing = this.#store[Symbol.asyncDispose]();
    this.#store = undefined;
    await Promise.all([closing, this.follow()]);
    assert.equal(this.opened.leftovers?.() ?? 0, 0, "grants or ports that the frontend has still");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
    this.backend[Symbol.dispose]();
    for (const runner of this.#runners) runner[Symbol.dispose]();
    await this.opened[Symbol.asyncDispose]();
  }
}

export function frontendSuite(name: string, options: FrontendSuiteOptions): void {
  const seed = options.seed ?? Math.floor(Math.random() * 2 ** 31);
  const register: FrontendTest = (rows, sentence, body, dialect = "spec") => {
    const run = shows(rows, async () => {
      await using bench = new FrontendBench(await options.open(dialect));
      return await body(bench);
    });
    test(`${name} ${sentence}`, { timeout: TIMEOUT_MILLISECONDS }, run);
  };
  for (const dialect of backendDialects) {
    register(dialect.rows, `is a disk before ${dialect.name}`, async (bench) => {
      const unused = await isDisk(bench, dialect, seed);
      if (options.complete === true) assert.deepEqual(unused, [], "offered and not used");
      return unused.length === 0;
    });
  }
  for (const dialect of options.dialects ?? ["spec"]) {
    register(
      ["4.5.1"],
      `is a disk of 4096-byte sectors before a backend that counts as ${dialect} says`,
      (bench) => largeSectors(bench, dialect, seed),
      dialect,
    );
  }
  register([], "does small requests side by side, and tells each of its own end", sideBySide);
  register(["1.11", "8.12"], "tells its caller of errors, and lives on", errors);
  frontendLies(register);
  register(["3.4"], "bears its backend's states in any order", (bench) => wanders(bench, seed));
}

/** Resolves to what the backend offers and the frontend does not use. */
async function isDisk(
  bench: FrontendBench,
  dialect: BackendDialect,
  seed: number,
): Promise<string[]> {
  const { backend, opened, disk } = bench;
  const known = new Set<number>(dialect.takesBack);
  backend.onrequest = (request, queue) => {
    assertAllowed(request, dialect);
    if (known.has(request.operation)) backend.answer(request, BLKIF_RSP_EOPNOTSUPP, queue);
    else bench.serve(request, queue, dialect.errorStatus);
  };
  const runner = await speak(bench, dialect);
  if (dialect.takesBack.length === 0) {
    await runModel({ runner, seed, size: disk.length, contents: disk, rounds: 20 });
  } else {
    // What cannot be made durable may be an error or no matter, as the frontend has it; data is read and written.
    for (let i = 0; i < 4; i++) {
      const status = await runner.run({ operation: "flush" });
      assert.ok(status === 0 || status === Errno.EOPNOTSUPP, `a flush: ${status}`);
    }
  }
  const read = await runner.read(0, disk.length);
  // Not deepEqual, whose account of two large arrays that differ takes more memory than there is.
  const wrong = read.findIndex((byte, i) => byte !== disk[i]);
  assert.ok(wrong < 0, `byte ${wrong} is ${read[wrong]}, not ${disk[wrong]}`);
  // A long transfer, which has to be cut.
  const long = new Uint8Array(300_000 - (300_000 % 512)).fill(0x5a);
  await runner.write(4096, long);
  assert.ok(disk.subarray(4096, 4096 + long.length).every((byte) => byte === 0x5a));
  if (dialect.takesBack.length === 0) assert.equal(await runner.run({ operation: "flush" }), 0);
  const unused = await unusedOffers(bench, dialect);
  await failsOnce(bench, runner, dialect);
  if (dialect.resizes) {
    const { promise, resolve } = Promise.withResolvers<number>();
    using _told = bench.store.subscribe({ resized: ({ size }) => resolve(size) });
    await backend.write({ sectors: String(disk.length / 1024) });
    await backend.become(4);
    assert.equal(await promise, disk.length / 2);
    await runner.read(disk.length / 2 - 512, 512);
  }
  await bench.close();
  assert.equal(opened.backendDomain.grants.counters.mapped, 0);
  return unused;
}

/** A request fails in the backend's own words, and the next one does not. */
async function failsOnce(
  bench: FrontendBench,
  runner: RequestRunner,
  { errorStatus }: BackendDialect,
): Promise<void> {
  const { backend } = bench;
  const serve = backend.onrequest;
  backend.onrequest = (request, queue) => backend.answer(request, errorStatus, queue);
  const status = await runner.run({ operation: "read", length: 4096 });
  assert.notEqual(status, 0, `a read that was answered with ${errorStatus}`);
  backend.onrequest = serve;
  await runner.read(0, 4096);
}

async function unusedOffers(bench: FrontendBench, dialect: BackendDialect): Promise<string[]> {
  const { backend, store } = bench;
  const keys: Readonly<Record<string, string>> = { ...dialect.early, ...dialect.late };
  const seen = new Set(backend.seen.map(({ operation }) => operation));
  const front = async (key: string) => Number((await backend.frontendKey(key)) ?? 0);
  const pages = (await front("ring-page-order")) > 0 || (await front("num-ring-pages")) > 1;
  const oldPages = (await front("num-ring-pages")) > 1;
  const used: Readonly<Record<string, boolean>> = {
    "max-ring-page-order": pages,
    "max-ring-pages": oldPages,
    "multi-queue-max-queues": backend.rings.length > 1,
    "feature-persistent": (await front("feature-persistent")) === 1,
    "feature-flush-cache": seen.has(BLKIF_OP_FLUSH_DISKCACHE),
    "feature-discard": store.info.discard !== undefined && seen.has(BLKIF_OP_DISCARD),
    // Where it comes too late for rings to be sized by it, nobody can be expected to use it.
    ...(dialect.early["feature-max-indirect-segments"] !== undefined && {
      "feature-max-indirect-segments": seen.has(BLKIF_OP_INDIRECT),
    }),
    // Who has a flush needs no barrier to do as one.
    ...(keys["feature-flush-cache"] !== "1" && {
      "feature-barrier": seen.has(BLKIF_OP_WRITE_BARRIER),
    }),
  };
  if (keys["feature-flush-cache"] === "1" && dialect.takesBack.length === 0) {
    assert.ok(!seen.has(BLKIF_OP_WRITE_BARRIER), "a barrier where a flush would do");
  }
  return Object.keys(used).filter((key) => (keys[key] ?? "0") !== "0" && used[key] !== true);
}

/** Connects as the backend does: which keys when, and by which states. */
async function speak(bench: FrontendBench, dialect: BackendDialect): Promise<RequestRunner> {
  const { backend, opened, disk } = bench;
  const size = { sectors: String(disk.length / 512), "sector-size": "512", info: "0" };
  await backend.write({ ...dialect.early, ...(dialect.sizeEarly ? size : {}) });
  const connecting = bench.start();
  connecting.catch(() => {});
  await backend.become(dialect.offers);
  await backend.attach(opened.frontendDomid);
  assert.ok(backend.rings.length <= dialect.maxQueues, `${backend.rings.length} queues`);
  const order = Number((await backend.frontendKey("ring-page-order")) ?? 0);
  assert.ok(order <= dialect.maxRingOrder, `ring-page-order ${order}`);
  await backend.write({ ...size, ...dialect.late });
  await backend.become(4);
  return await connecting;
}

/** What the backend has offered is all that it may be asked. */
function assertAllowed(request: BlkifRequest, dialect: BackendDialect): void {
  const keys = { ...dialect.early, ...dialect.late };
  const offers = (key: string) => keys[key] === "1";
  const { operation, segmentCount, indirectSegmentCount } = request;
  assert.ok(segmentCount <= 11);
  if (operation === BLKIF_OP_INDIRECT) {
    assert.ok(indirectSegmentCount > 0 && indirectSegmentCount <= dialect.maxSegments);
  }
  if (operation === BLKIF_OP_FLUSH_DISKCACHE) assert.ok(offers("feature-flush-cache"));
  if (operation === BLKIF_OP_WRITE_BARRIER) assert.ok(offers("feature-barrier"));
  if (operation === BLKIF_OP_DISCARD) assert.ok(offers("feature-discard"));
}

/** However many of them one request of the ring carries. */
async function sideBySide(bench: FrontendBench): Promise<void> {
  const { backend, disk } = bench;
  const runner = await bench.connect({ "feature-max-indirect-segments": "32" });
  const count = 300;
  const bytes = (i: number) => new Uint8Array(512).fill(1 + (i % 255));
  const writes = Array.from({ length: count }, (_, i) => runner.write(i * 512, bytes(i)));
  await Promise.all(writes);
  for (let i = 0; i < count; i++) assert.deepEqual(disk.subarray(i * 512, i * 512 + 512), bytes(i));
  const reads = Array.from({ length: count }, (_, i) => runner.read(i * 512, 512));
  for (const [i, read] of (await Promise.all(reads)).entries()) assert.deepEqual(read, bytes(i));
  backend.onrequest = (request, queue) => backend.answer(request, BLKIF_RSP_ERROR, queue);
  const failing = Array.from({ length: count }, (_, i) =>
    runner.submit({ operation: i < 150 ? "read" : "write", offset: i * 512, length: 512 }),
  );
  for (const watched of failing) {
    assert.notEqual(await watched.ended, 0);
    assert.equal(watched.completions, 1);
  }
}

async function errors(bench: FrontendBench): Promise<void> {
  const { backend } = bench;
  const runner = await bench.connect();
  for (const status of [-1, -2, -5, -95, 5, 32767, -32768]) {
    backend.onrequest = (request, queue) => backend.answer(request, status, queue);
    assert.notEqual(await runner.run({ operation: "read", length: 4096 }), 0, `status ${status}`);
  }
  backend.onrequest = (request, queue) => bench.serve(request, queue);
  assert.equal(await runner.run({ operation: "read", length: 4096 }), 0);
}

async function wanders(bench: FrontendBench, seed: number): Promise<void> {
  const { backend } = bench;
  const random = new SeededRandom(seed);
  const runner = await bench.connect();
  const ended: Promise<number>[] = [];
  for (let step = 0; step < 40; step++) {
    await backend.become(random.below(9));
    ended.push(runner.run({ operation: "read", length: 4096 }));
    for (let pause = random.below(4); pause > 0; pause--) await turn();
  }
  await backend.become(5);
  await until(
    async () => ((await Promise.race([Promise.all(ended), turn(undefined)])) ? true : undefined),
    () => `seed ${seed}: a request never ends`,
    10_000,
  );
}
