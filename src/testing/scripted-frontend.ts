/**
 * A frontend under a test's control: it negotiates as told, puts on its rings whatever it is given, and looks at what
 * comes back. What is not scripted is what an honest frontend does.
 */
import assert from "node:assert/strict";
import { FrontRing } from "../ring/front-ring.ts";
import {
  BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
  BLKIF_OP_INDIRECT,
  type BlkifLayout,
  type BlkifProtocol,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
  IndirectSegments,
  indirectPageCount,
} from "../wire/blkif.ts";
import { REQ_PROD, RING_HEADER_WORDS } from "../wire/shared-ring.ts";
import { type Domain, type EventChannel, type OwnPages, PAGE_SIZE } from "../xen/domain.ts";
import type { VbdPaths } from "../xen/toolstack.ts";
import { parseState, stateName, type XenbusState } from "../xen/xenbus.ts";
import { smallUnits, type Units } from "./large-sectors.ts";
import { until } from "./vbd-pair.ts";

/** What it offers, where that is not a ring of one page in the 64-bit ABI. */
export interface FrontendOffer {
  /** null writes no key, and lays the ring out as x86_32, which is what a missing key means to Linux. */
  readonly protocol?: BlkifProtocol | null;
  readonly ringOrder?: number;
  /** How the pages of a larger ring are listed: Linux's way; the old way of num-ring-pages; FreeBSD's, which writes
   * both keys and calls the first page ring-ref. */
  readonly ringKeys?: "ring-page-order" | "num-ring-pages" | "both";
  readonly queues?: number;
  readonly persistent?: boolean;
  /** State written once the keys are: 3, or 4 for frontends that do not wait. */
  readonly state?: 3 | 4;
  /** Writes its keys without waiting for InitWait. */
  readonly hasty?: boolean;
  /** Other keys, or other values. */
  readonly keys?: Readonly<Record<string, string>>;
  /** Pages of data; 32 if absent. */
  readonly pages?: number;
  /** Fills the references that an indirect request does not need with rubbish, as FreeBSD does. */
  readonly allIndirectReferences?: boolean;
  /** Asks for events and waits for them; it looks at the ring over and over if absent. */
  readonly waitsForEvents?: boolean;
}

/** One of its rings. */
export interface ScriptedRing {
  readonly ring: FrontRing;
  readonly pages: OwnPages;
  readonly channel: EventChannel;
}

/** An honest backend is faster, and a foreign one may live in another process. */
const PATIENCE_MILLISECONDS = 5000;
/** Word of a slot's body, after its id and sector, where the references of indirect pages begin. */
const INDIRECT_REFERENCES = 5;

export class ScriptedFrontend implements AsyncDisposable {
  readonly domain: Domain;
  readonly paths: VbdPaths;
  readonly rings: ScriptedRing[] = [];
  data!: OwnPages;
  /** Lists of segments of indirect requests. */
  tables!: OwnPages;
  /** In which it writes the numbers of transfers. */
  units: Units = smallUnits;
  #layout: BlkifLayout = blkifLayout("native");
  #packed = false;
  #rubbish = false;
  #waits = false;
  #peer = 0;
  #id = 0;

  readonly #patienceMilliseconds: number;

  /** Waits for so long (5 seconds) for whatever the backend has to do. */
  constructor(
    domain: Domain,
    paths: VbdPaths,
    patienceMilliseconds: number = PATIENCE_MILLISECONDS,
  ) {
    this.domain = domain;
    this.paths = paths;
    this.#patienceMilliseconds = patienceMilliseconds;
  }

  /** The first ring. */
  get ring(): FrontRing {
    return this.rings[0]!.ring;
  }

  get channel(): EventChannel {
    return this.rings[0]!.channel;
  }

  async state(end: "frontend" | "backend"): Promise<XenbusState> {
    return parseState(await this.domain.store.read(`${this.paths[end]}/state`));
  }

  async become(state: number): Promise<void> {
    await this.domain.store.write(`${this.paths.frontend}/state`, String(state));
  }

  /** Waits until the backend is in one of the states. */
  async backendIs(...states: number[]): Promise<void> {
    let state: XenbusState = 0;
    await until(
      async () => {
        state = await this.state("backend");
        return states.includes(state) ? true : undefined;
      },
      () => `the backend stays in ${stateName(state)}, not ${states.join(" or ")}`,
      this.#patienceMilliseconds,
    );
  }

  backendKey(key: string): Promise<string | undefined> {
    return this.domain.store.read(`${this.paths.backend}/${key}`);
  }

  /** A key that holds a number; `missing` where there is none. */
  async backendNumber(key: string, missing = 0): Promise<number> {
    const text = await this.backendKey(key);
    return text === undefined ? missing : Number(text);
  }

  /** Waits for InitWait, unless it is hasty, offers its rings and waits for Connected. */
  async connect(backendDomid: number, offer: FrontendOffer = {}): Promise<void> {
    if (offer.hasty !== true) await this.backendIs(2);
    await this.offer(backendDomid, offer);
    await this.backendIs(4);
    if ((offer.state ?? 3) === 3) await this.become(4);
  }

  /** Writes the keys and the state that says so. */
  async offer(backendDomid: number, offer: FrontendOffer = {}): Promise<void> {
    const { grants, store } = this.domain;
    this.#peer = backendDomid;
    this.data = grants.allocate(offer.pages ?? 32)!;
    this.tables = grants.allocate(1)!;
    for (const pages of [this.data, this.tables]) this.#grantAll(pages);
    const protocol = offer.protocol === undefined ? "x86_64-abi" : offer.protocol;
    this.#layout = blkifLayout(protocol ?? "x86_32-abi");
    this.#packed = (protocol ?? "x86_32-abi") === "x86_32-abi";
    this.#rubbish = offer.allIndirectReferences === true;
    this.#waits = offer.waitsForEvents === true;
    const keys: Record<string, string> = {};
    if (protocol !== null) keys.protocol = protocol;
    if (offer.persistent === true) keys["feature-persistent"] = "1";
    const queues = offer.queues ?? 1;
    if (queues > 1) keys["multi-queue-num-queues"] = String(queues);
    for (let queue = 0; queue < queues; queue++) {
      this.#addRing(keys, queues > 1 ? `queue-${queue}/` : "", offer);
    }
    for (const [key, value] of Object.entries({ ...keys, ...offer.keys })) {
      await store.write(`${this.paths.frontend}/${key}`, value);
    }
    await this.become(offer.state ?? 3);
  }

  #grantAll(pages: OwnPages): void {
    for (let i = 0; i < pages.count; i++) assert.ok(pages.grant(i, this.#peer, false));
  }

  #addRing(keys: Record<string, string>, prefix: string, offer: FrontendOffer): void {
    const order = offer.ringOrder ?? 0;
    const scheme = offer.ringKeys ?? "ring-page-order";
    const pages = this.domain.grants.allocate(1 << order)!;
    this.#grantAll(pages);
    const { region, start, count, references } = pages;
    const bytes = region.bytes.subarray(start, start + count * PAGE_SIZE);
    const ring = new FrontRing(bytes, this.#layout);
    const channel = this.domain.events.allocateUnbound(this.#peer);
    this.rings.push({ ring, pages, channel });
    keys[`${prefix}event-channel`] = String(channel.port);
    if (order === 0) {
      keys[`${prefix}ring-ref`] = String(references[0]);
      return;
    }
    if (scheme !== "num-ring-pages") keys["ring-page-order"] = String(order);
    if (scheme !== "ring-page-order") keys["num-ring-pages"] = String(count);
    for (let i = 0; i < count; i++) {
      const name = i === 0 && scheme === "both" ? "ring-ref" : `ring-ref${i}`;
      keys[`${prefix}${name}`] = String(references[i]);
    }
  }

  /** A request with its own id. */
  request(operation: number, fields: Partial<BlkifRequest> = {}): BlkifRequest {
    const request = Object.assign(new BlkifRequest(), fields);
    request.operation = operation;
    request.idLow = ++this.#id;
    return request;
  }

  #numberOf(sector: number): number {
    return Math.floor((sector * 512) / this.units.sectorNumber);
  }

  /** A transfer of `count` whole pages of data, from page `first` on: at most 11, else see `indirect`. `sector` counts
   * 512 bytes; what does not divide by the unit is cut off. */
  transfer(operation: number, sector: number, count: number, first = 0): BlkifRequest {
    const request = this.request(operation, {
      sectorLow: this.#numberOf(sector),
      segmentCount: count,
    });
    for (let i = 0; i < count; i++) {
      request.references[i] = this.data.references[first + i]!;
      request.lastSectors[i] = PAGE_SIZE / this.units.segments - 1;
    }
    return request;
  }

  /** The same as an indirect request, which may have as many segments as the backend allows. The list of segments is
   * one page: such requests go one by one. */
  indirect(operation: number, sector: number, count: number, first = 0): BlkifRequest {
    const segments = new IndirectSegments(count);
    for (let i = 0; i < count; i++) {
      segments.references[i] = this.data.references[first + i]!;
      segments.lastSectors[i] = PAGE_SIZE / this.units.segments - 1;
    }
    const { region, start, references } = this.tables;
    segments.write(new Uint32Array(region.bytes.buffer, region.bytes.byteOffset + start), 0, count);
    const request = this.request(BLKIF_OP_INDIRECT, {
      sectorLow: this.#numberOf(sector),
      indirectOperation: operation,
      indirectSegmentCount: count,
    });
    request.indirectReferences[0] = references[0]!;
    return request;
  }

  /** Bytes of a page of data. */
  page(index: number): Uint8Array {
    const at = this.data.start + index * PAGE_SIZE;
    return this.data.region.bytes.subarray(at, at + PAGE_SIZE);
  }

  /** Bytes of pages of data that lie side by side. */
  bytes(first: number, count: number): Uint8Array {
    const at = this.data.start + first * PAGE_SIZE;
    return this.data.region.bytes.subarray(at, at + count * PAGE_SIZE);
  }

  /** Takes the grants of data pages back and gives new ones, as a frontend without persistent grants does for each
   * request. False when the backend still maps one of them. */
  regrant(first: number, count: number): boolean {
    for (let i = first; i < first + count; i++) {
      if (!this.data.endAccess(i)) return false;
      assert.ok(this.data.grant(i, this.#peer, false));
    }
    return true;
  }

  /** Puts requests on the first ring and publishes them. */
  send(...requests: BlkifRequest[]): void {
    this.sendTo(0, ...requests);
  }

  sendTo(queue: number, ...requests: BlkifRequest[]): void {
    const { ring, channel } = this.rings[queue]!;
    for (const request of requests) {
      ring.push(request);
      if (this.#rubbish && request.operation === BLKIF_OP_INDIRECT) this.#fillUp(queue, request);
    }
    if (ring.publish()) channel.notify();
    this.domain.reactor.soon();
  }

  /** Publishes an index of its choice as the end of its requests, possible or not. */
  publishIndex(producer: number, queue = 0): void {
    const { pages, channel } = this.rings[queue]!;
    const { buffer, byteOffset } = pages.region.bytes;
    Atomics.store(new Int32Array(buffer, byteOffset + pages.start, 4), REQ_PROD, producer);
    channel.notify();
    this.domain.reactor.soon();
  }

  /** Bytes of the slot in which a request or response with this free-running index lies. */
  slot(queue: number, index: number): Uint8Array {
    const { ring, pages } = this.rings[queue]!;
    const { requestSize } = this.#layout;
    const at = pages.start + RING_HEADER_WORDS * 4 + (index & (ring.size - 1)) * requestSize;
    return pages.region.bytes.subarray(at, at + requestSize);
  }

  /** Asserts that the second response on a ring lies where the ABI has it: the codec might err on both ends alike. Slots
   * begin 64 bytes into the ring, and have 108 bytes where 64-bit fields are aligned to 4, else 112. Where there are
   * several rings the second slot of the first may be unused still. */
  assertSecondSlot(): void {
    const { ring, pages } = this.rings[0]!;
    if (ring.responsesConsumed !== 2) return;
    const start = pages.start + 64 + (this.#packed ? 108 : 112);
    const view = new DataView(pages.region.bytes.buffer, pages.region.bytes.byteOffset + start, 12);
    assert.equal(view.getUint32(0, true), this.#id, "the id of the second response");
    assert.equal(view.getInt16(10, true), 0, "its status");
  }

  #fillUp(queue: number, request: BlkifRequest): void {
    const { ring } = this.rings[queue]!;
    const slot = this.slot(queue, ring.requestsProduced - 1);
    const words = new Uint32Array(slot.buffer, slot.byteOffset, slot.length / 4);
    const first = this.#layout.body + INDIRECT_REFERENCES;
    const used = indirectPageCount(request.indirectSegmentCount);
    words.fill(0xdeadbeef, first + used, first + BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
  }

  /** The next response. */
  async receive(queue = 0): Promise<BlkifResponse> {
    const { ring, channel } = this.rings[queue]!;
    const response = new BlkifResponse();
    while (this.#waits && ring.pending() === 0) {
      if (!ring.finalCheck()) await nextEvent(channel, this.#patienceMilliseconds);
    }
    await until(
      () => (ring.pending() < 1 ? undefined : true),
      () => "no response",
      this.#patienceMilliseconds,
    );
    ring.consume(response);
    return response;
  }

  /** Sends one request and returns its status. */
  async status(request: BlkifRequest, queue = 0): Promise<number> {
    this.sendTo(queue, request);
    const response = await this.receive(queue);
    assert.equal(response.idLow, request.idLow, "the response's id");
    assert.equal(response.idHigh, request.idHigh, "the response's id");
    return response.status;
  }

  /** Says goodbye as a driver does, and waits for the backend to do the same. */
  async close(): Promise<void> {
    await this.become(5);
    await this.backendIs(5, 6);
    await this.become(6);
    await this.backendIs(6);
  }

  /** Pages that the backend maps still: after its Closed there are none. */
  get pagesHeld(): number {
    let held = 0;
    const all = [...this.rings.map(({ pages }) => pages)];
    if (this.data !== undefined) all.push(this.data, this.tables);
    for (const pages of all) {
      for (let i = 0; i < pages.count; i++) if (!pages.endAccess(i)) held++;
    }
    return held;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { channel, pages } of this.rings.splice(0)) {
      channel[Symbol.dispose]();
      pages[Symbol.dispose]();
    }
    this.data?.[Symbol.dispose]();
    this.tables?.[Symbol.dispose]();
  }
}

async function nextEvent(channel: EventChannel, milliseconds: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const late = () => reject(new Error("no event, though one was asked for"));
  const timer = setTimeout(late, milliseconds);
  channel.onevent = resolve;
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    channel.onevent = undefined;
  }
}
