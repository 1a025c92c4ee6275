/**
 * A backend under a test's control: it shows the keys it is told to, serves an array of bytes or answers what the test
 * says, and can do to its frontend what no honest backend would. What is not scripted is what an honest one does.
 */
import assert from "node:assert/strict";
import { BackRing } from "../ring/back-ring.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
  BLKIF_SEGMENTS_PER_INDIRECT_PAGE,
  BlkifRequest,
  blkifLayout,
  IndirectSegments,
  indirectPageCount,
  parseBlkifProtocol,
  sectorOf,
} from "../wire/blkif.ts";
import {
  type ContiguousMapping,
  type Domain,
  type EventChannel,
  GrantMapBatch,
  PAGE_SIZE,
} from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import { parseState, readNumber, stateName, type XenbusState } from "../xen/xenbus.ts";
import { smallUnits, type Units } from "./large-sectors.ts";
import { until } from "./vbd-pair.ts";

/** What every backend shows. */
const PLAIN = { sectors: "2048", "sector-size": "512", info: "0" };
const PATIENCE_MILLISECONDS = 5000;

/** One ring of the frontend's. */
export interface ServedRing {
  readonly ring: BackRing;
  readonly mapping: ContiguousMapping;
  readonly channel: EventChannel;
}

export class ScriptedBackend implements Disposable {
  readonly domain: Domain;
  readonly paths: VbdPaths;
  readonly rings: ServedRing[] = [];
  /** Requests that arrived. */
  readonly seen: BlkifRequest[] = [];
  /** Answers a request; nothing is answered where it is undefined. */
  onrequest: ((request: BlkifRequest, queue: number) => void) | undefined;
  /** In which it reads the numbers of requests. */
  units: Units = smallUnits;
  #frontendDomid = 0;

  constructor(domain: Domain, paths: VbdPaths) {
    this.domain = domain;
    this.paths = paths;
  }

  /** The first ring. */
  get ring(): BackRing {
    return this.rings[0]!.ring;
  }

  get mapping(): ContiguousMapping {
    return this.rings[0]!.mapping;
  }

  get channel(): EventChannel {
    return this.rings[0]!.channel;
  }

  async become(state: number): Promise<void> {
    await this.domain.store.write(`${this.paths.backend}/state`, String(state));
  }

  /** Waits until the frontend is in one of the states. */
  async frontendIs(...states: number[]): Promise<void> {
    let state: XenbusState = 0;
    await until(
      async () => {
        state = parseState(await this.domain.store.read(`${this.paths.frontend}/state`));
        return states.includes(state) ? true : undefined;
      },
      () => `the frontend stays in ${stateName(state)}, not ${states.join(" or ")}`,
      PATIENCE_MILLISECONDS,
    );
  }

  frontendKey(key: string): Promise<string | undefined> {
    return this.domain.store.read(`${this.paths.frontend}/${key}`);
  }

  async write(keys: Readonly<Record<string, string>>): Promise<void> {
    for (const [key, value] of Object.entries(keys)) {
      await this.domain.store.write(`${this.paths.backend}/${key}`, value);
    }
  }

  /** Offers, waits for the frontend's rings, and shows the device with these keys. */
  async connect(frontendDomid: number, keys: Readonly<Record<string, string>> = {}): Promise<void> {
    await this.write(keys);
    await this.become(2);
    await this.attach(frontendDomid);
    await this.write({ ...PLAIN, ...keys });
    await this.become(4);
  }

  /** Waits for the frontend's rings and maps them. */
  async attach(frontendDomid: number): Promise<void> {
    const { store } = this.domain;
    const front = this.paths.frontend;
    this.#frontendDomid = frontendDomid;
    await this.frontendIs(3, 4);
    const number = (key: string) => readNumber(store, `${front}/${key}`);
    const protocol = parseBlkifProtocol((await this.frontendKey("protocol")) ?? "x86_32-abi");
    const queues = (await number("multi-queue-num-queues")) ?? 1;
    const order = (await number("ring-page-order")) ?? 0;
    for (let queue = 0; queue < queues; queue++) {
      const prefix = queues > 1 ? `queue-${queue}/` : "";
      const references: number[] = [];
      for (let i = 0; i < 1 << order; i++) {
        const key = order === 0 ? "ring-ref" : `ring-ref${i}`;
        references.push((await number(`${prefix}${key}`))!);
      }
      const mapping = this.domain.grants.mapContiguous(frontendDomid, references, false);
      assert.ok(typeof mapping === "object", `mapping the ring: status ${mapping}`);
      const ring = new BackRing(mapping.bytes, blkifLayout(protocol!));
      const port = (await number(`${prefix}event-channel`))!;
      const channel = this.domain.events.bindInterdomain(frontendDomid, port);
      this.rings.push({ ring, mapping, channel });
      channel.onevent = () => this.take(queue);
    }
  }

  /** Takes what has arrived on a ring, has it answered, and publishes the answers. */
  take(queue = 0): void {
    const { ring } = this.rings[queue]!;
    do {
      while (ring.pending() > 0) {
        const request = new BlkifRequest();
        ring.consume(request);
        this.seen.push(request);
        this.onrequest?.(request, queue);
      }
    } while (ring.finalCheck());
    this.publish(queue);
  }

  answer(request: BlkifRequest, status: number, queue = 0): void {
    const { ring } = this.rings[queue]!;
    const inner = request.operation === BLKIF_OP_INDIRECT;
    const operation = inner ? request.indirectOperation : request.operation;
    ring.respond(request.idLow, request.idHigh, operation, status);
  }

  publish(queue = 0): void {
    const { ring, channel } = this.rings[queue]!;
    if (ring.publish()) channel.notify();
    this.domain.reactor.soon();
  }

  /** Carries a request out on an array of bytes; its status. `errorStatus` is what it says of a request that cannot
   * be: NetBSD once sent errno values. */
  execute(request: BlkifRequest, disk: Uint8Array, errorStatus: number = BLKIF_RSP_ERROR): number {
    const inner = request.operation === BLKIF_OP_INDIRECT;
    const operation = inner ? request.indirectOperation : request.operation;
    const { sectorNumber, segments: unit } = this.units;
    const start = sectorOf(request.sectorLow, request.sectorHigh) * sectorNumber;
    switch (operation) {
      case BLKIF_OP_DISCARD: {
        const count = sectorOf(request.discardSectorsLow, request.discardSectorsHigh);
        const end = start + count * sectorNumber;
        if (end > disk.length) return errorStatus;
        disk.fill(0, start, end);
        return BLKIF_RSP_OKAY;
      }
      case BLKIF_OP_FLUSH_DISKCACHE:
      case BLKIF_OP_WRITE_BARRIER:
      case BLKIF_OP_READ:
      case BLKIF_OP_WRITE:
        break;
      default:
        return BLKIF_RSP_EOPNOTSUPP;
    }
    const count = inner ? request.indirectSegmentCount : request.segmentCount;
    const segments = inner ? this.#indirectSegments(request, count) : request;
    if (segments === undefined) return errorStatus;
    let at = start;
    const reads = operation === BLKIF_OP_READ;
    for (let i = 0; i < count; i++) {
      const first = segments.firstSectors[i]! * unit;
      const length = (segments.lastSectors[i]! + 1) * unit - first;
      if (length <= 0 || first + length > PAGE_SIZE || at + length > disk.length)
        return errorStatus;
      const done = this.withPage(segments.references[i]!, !reads, (page) => {
        const part = page.subarray(first, first + length);
        if (reads) part.set(disk.subarray(at, at + length));
        else disk.set(part, at);
      });
      if (!done) return errorStatus;
      at += length;
    }
    return BLKIF_RSP_OKAY;
  }

  #indirectSegments(request: BlkifRequest, count: number): IndirectSegments | undefined {
    const segments = new IndirectSegments(count);
    for (let table = 0; table < indirectPageCount(count); table++) {
      const start = table * BLKIF_SEGMENTS_PER_INDIRECT_PAGE;
      const entries = Math.min(count - start, BLKIF_SEGMENTS_PER_INDIRECT_PAGE);
      const done = this.withPage(request.indirectReferences[table]!, true, (page) => {
        const words = new Uint32Array(page.buffer, page.byteOffset, page.length / 4);
        segments.read(words, start, entries);
      });
      if (!done) return undefined;
    }
    return segments;
  }

  /** Maps a page of the frontend's for as long as `use` runs. False where it cannot be mapped. */
  withPage(reference: number, readOnly: boolean, use: (page: Uint8Array) => void): boolean {
    const batch = new GrantMapBatch(1);
    batch.count = 1;
    batch.references[0] = reference;
    batch.readOnly[0] = readOnly ? 1 : 0;
    this.domain.grants.map(this.#frontendDomid, batch);
    if (batch.statuses[0] !== 0) return false;
    try {
      const start = batch.starts[0]!;
      use(batch.regions[0]!.bytes.subarray(start, start + 4096));
    } finally {
      this.domain.grants.unmap(batch.handles[0]!);
    }
    return true;
  }

  /** Lets go of the frontend's rings, as a backend does before it writes Closed. */
  detach(): void {
    for (const { channel, mapping } of this.rings.splice(0)) {
      channel[Symbol.dispose]();
      mapping[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    this.detach();
  }
}
