/** A backend under test with a scripted frontend before it, and what most tests of the suite do with both. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import type { DialectName } from "../block/features.ts";
import { BLKIF_OP_READ, type BLKIF_OP_WRITE, BLKIF_RSP_OKAY } from "../wire/blkif.ts";
import { type Domain, PAGE_SIZE } from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import type { FrontendDialect } from "./frontend-dialects.ts";
import { type FrontendOffer, ScriptedFrontend } from "./scripted-frontend.ts";
import { until } from "./vbd-pair.ts";

/** A backend that waits for its frontend; disposal ends it and what it stands on. */
export interface OpenedBackend extends AsyncDisposable {
  /** Where the scripted frontend lives. */
  readonly frontendDomain: Domain;
  readonly backendDomid: number;
  /** Both directories, as a toolstack leaves them. */
  readonly paths: VbdPaths;
  /** Gives the disk another size, in bytes. Absent where it has one for ever. */
  resize?(size: number): Promise<void>;
  /** Sets `online` to 0, as a toolstack does before the last goodbye; resolves when that is written. */
  takeOffline?(): Promise<void>;
  /** Pages of the frontend's that the backend maps now. Absent where it cannot be asked. */
  mappedPages?(): number;
}

export interface BackendSuiteOptions {
  /** A fresh vbd of at least 1 MiB each time. */
  open(): Promise<OpenedBackend>;
  /** A fresh vbd of logical sectors of 4096 bytes, counted in one of the dialects, where the backend has such. */
  readonly largeSectors?: {
    readonly dialects: readonly DialectName[];
    open(dialect: DialectName): Promise<OpenedBackend>;
  };
  /** It refuses writes. */
  readonly readOnly?: boolean;
  /** It forgets what is written. */
  readonly forgets?: boolean;
  /** It offers all that any driver can use: not to do so fails a test, which otherwise passes and shows nothing. */
  readonly complete?: boolean;
}

/** Turns of the event loop, of a millisecond at least: longer than a backend takes to see a state, on this thread (where
 * time alone says little) or elsewhere. */
const LATE_TURNS = 30;

/** Sectors of a page. */
export const SECTORS_PER_PAGE: number = PAGE_SIZE / 512;

export class BackendBench implements AsyncDisposable {
  readonly opened: OpenedBackend;
  readonly #frontends: ScriptedFrontend[] = [];

  constructor(opened: OpenedBackend) {
    this.opened = opened;
  }

  /** A frontend that has not begun. */
  frontend(): ScriptedFrontend {
    const frontend = new ScriptedFrontend(this.opened.frontendDomain, this.opened.paths);
    this.#frontends.push(frontend);
    return frontend;
  }

  /** A frontend that is connected. */
  async connected(offer: FrontendOffer = {}): Promise<ScriptedFrontend> {
    const frontend = this.frontend();
    await frontend.connect(this.opened.backendDomid, offer);
    return frontend;
  }

  /** A frontend that has connected as its driver does, in what the backend offers. */
  async speak(dialect: FrontendDialect): Promise<Spoken> {
    const frontend = this.frontend();
    if (dialect.waits) await frontend.backendIs(2);
    // Who does not wait reads what happens to be there.
    const within = async (key: string, wished: number, missing: number) =>
      Math.min(wished, await frontend.backendNumber(key, missing));
    const listed = dialect.ringKeys === "num-ring-pages";
    const ringOrder = listed
      ? Math.floor(Math.log2(await within("max-ring-pages", 1 << dialect.ringOrder, 1)))
      : await within("max-ring-page-order", dialect.ringOrder, 0);
    const queues = await within("multi-queue-max-queues", dialect.queues, 1);
    const offered = await within("feature-max-indirect-segments", 256, 0);
    const indirect = dialect.maxSegments > 11 && offered >= dialect.leastIndirect;
    const maxSegments = indirect
      ? Math.min(dialect.maxSegments, offered)
      : Math.min(dialect.maxSegments, 11);
    await frontend.connect(this.opened.backendDomid, {
      protocol: dialect.protocol,
      ringOrder,
      ringKeys: dialect.ringKeys,
      queues,
      persistent: dialect.persistent,
      state: dialect.state,
      hasty: !dialect.waits,
      keys: dialect.keys,
      pages: 2 * maxSegments,
      allIndirectReferences: dialect.allIndirectReferences,
      waitsForEvents: !dialect.polls,
    });
    const persistent =
      dialect.persistent && (await frontend.backendKey("feature-persistent")) === "1";
    const whole =
      ringOrder === dialect.ringOrder &&
      queues === dialect.queues &&
      maxSegments === dialect.maxSegments &&
      persistent === dialect.persistent;
    return { dialect, frontend, queues, maxSegments, persistent, whole };
  }

  /** What a backend maps of a frontend that has gone. */
  assertNothingHeld(frontend: ScriptedFrontend): void {
    assert.equal(frontend.pagesHeld, 0, "pages that the backend maps after its Closed");
    const mapped = this.opened.mappedPages?.() ?? 0;
    assert.equal(mapped, 0, "pages that the backend says it maps after its Closed");
  }

  /** The same, where the backend may be about to go on to an older state first. */
  async untilNothingHeld(frontend: ScriptedFrontend): Promise<void> {
    // Closed may be the one of an earlier time, which the backend is about to leave.
    for (let i = 0; i < LATE_TURNS; i++) await sleep(1);
    const held = () => frontend.pagesHeld + (this.opened.mappedPages?.() ?? 0);
    await until(
      () => (held() === 0 ? true : undefined),
      () => `the backend maps ${held()} pages of a frontend that has gone`,
      5000,
    );
    await frontend.backendIs(6);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.opened[Symbol.asyncDispose]();
    for (const frontend of this.#frontends) await frontend[Symbol.asyncDispose]();
  }
}

/** A connection in a dialect, and what came of its wishes. */
export interface Spoken {
  readonly dialect: FrontendDialect;
  readonly frontend: ScriptedFrontend;
  readonly queues: number;
  /** Of its largest request. */
  readonly maxSegments: number;
  readonly persistent: boolean;
  /** All that the driver wished for was offered. */
  readonly whole: boolean;
}

/** Moves `count` pages from data page `first` on, in requests as large as the dialect's; rejects unless all succeed. */
export async function transferAll(
  { dialect, frontend, queues, maxSegments, persistent }: Spoken,
  operation: typeof BLKIF_OP_READ | typeof BLKIF_OP_WRITE,
  sector: number,
  count: number,
): Promise<void> {
  for (let done = 0, turn = 0; done < count; turn++) {
    const pages = Math.min(maxSegments, count - done);
    const at = sector + done * SECTORS_PER_PAGE;
    const request =
      pages > 11
        ? frontend.indirect(operation, at, pages, done)
        : frontend.transfer(operation, at, pages, done);
    request.handle = dialect.handle;
    const name = operation === BLKIF_OP_READ ? "reading" : "writing";
    assert.equal(await frontend.status(request, turn % queues), BLKIF_RSP_OKAY, `${name} at ${at}`);
    if (!persistent) {
      assert.ok(frontend.regrant(done, pages), "the backend answered before it unmapped the pages");
    }
    done += pages;
  }
}

/** Bytes that differ from place to place and from seed to seed. */
export function fillPattern(bytes: Uint8Array, seed: number): void {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e3779b1) ^ seed;
}

export function assertPattern(bytes: Uint8Array, seed: number, what: string): void {
  const expected = new Uint8Array(bytes.length);
  fillPattern(expected, seed);
  const at = bytes.findIndex((byte, index) => byte !== expected[index]);
  assert.ok(at < 0, `${what}: byte ${at} is ${bytes[at]}, not ${expected[at]}`);
}
