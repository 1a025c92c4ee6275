/** A frontend under a test's control: it negotiates as told, puts on the ring whatever it is given, and looks at what
 * comes back. What is not scripted is what an honest frontend does. */
import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { FrontRing } from "../../src/ring/front-ring.ts";
import {
  type BlkifProtocol,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
} from "../../src/wire/blkif.ts";
import { type Domain, type EventChannel, type OwnPages, PAGE_SIZE } from "../../src/xen/domain.ts";
import type { VbdPaths } from "../../src/xen/toolstack.ts";
import { parseState, type XenbusState } from "../../src/xen/xenbus.ts";

export interface Script {
  readonly protocol?: BlkifProtocol | null;
  readonly ringOrder?: number;
  readonly persistent?: boolean;
  /** State written once the keys are: 3, or 4 for frontends that do not wait. */
  readonly state?: 3 | 4;
  /** Other keys, or other values. */
  readonly keys?: Record<string, string>;
  /** Pages of data. */
  readonly pages?: number;
}

export class ScriptedFrontend implements AsyncDisposable {
  readonly domain: Domain;
  readonly paths: VbdPaths;
  ring!: FrontRing;
  ringPages!: OwnPages;
  data!: OwnPages;
  channel!: EventChannel;
  #id = 0;

  constructor(domain: Domain, paths: VbdPaths) {
    this.domain = domain;
    this.paths = paths;
  }

  async state(end: "frontend" | "backend"): Promise<XenbusState> {
    return parseState(await this.domain.store.read(`${this.paths[end]}/state`));
  }

  async become(state: number): Promise<void> {
    await this.domain.store.write(`${this.paths.frontend}/state`, String(state));
  }

  /** Waits until the backend is in one of the states. */
  async backendIs(...states: number[]): Promise<void> {
    const started = performance.now();
    for (;;) {
      const state = await this.state("backend");
      if (states.includes(state)) return;
      assert.ok(performance.now() - started < 5000, `the backend stays in ${state}`);
      await turn();
    }
  }

  backendKey(key: string): Promise<string | undefined> {
    return this.domain.store.read(`${this.paths.backend}/${key}`);
  }

  /** Waits for InitWait, offers a ring and waits for Connected. */
  async connect(backendDomid: number, script: Script = {}): Promise<void> {
    await this.backendIs(2);
    await this.offer(backendDomid, script);
    await this.backendIs(4);
    if ((script.state ?? 3) === 3) await this.become(4);
  }

  /** Writes the keys and the state that says so. */
  async offer(backendDomid: number, script: Script = {}): Promise<void> {
    const order = script.ringOrder ?? 0;
    const { grants, events, store } = this.domain;
    this.ringPages = grants.allocate(1 << order)!;
    this.data = grants.allocate(script.pages ?? 32)!;
    for (const pages of [this.ringPages, this.data]) {
      for (let i = 0; i < pages.count; i++) assert.ok(pages.grant(i, backendDomid, false));
    }
    const protocol = script.protocol === undefined ? "x86_64-abi" : script.protocol;
    const { region, start, count } = this.ringPages;
    const bytes = region.bytes.subarray(start, start + count * PAGE_SIZE);
    this.ring = new FrontRing(bytes, blkifLayout(protocol ?? "x86_32-abi"));
    this.channel = events.allocateUnbound(backendDomid);
    const keys: Record<string, string> = { "event-channel": String(this.channel.port) };
    if (protocol !== null) keys.protocol = protocol;
    if (script.persistent === true) keys["feature-persistent"] = "1";
    if (order === 0) keys["ring-ref"] = String(this.ringPages.references[0]);
    else {
      keys["ring-page-order"] = String(order);
      for (let i = 0; i < count; i++) keys[`ring-ref${i}`] = String(this.ringPages.references[i]);
    }
    for (const [key, value] of Object.entries({ ...keys, ...script.keys })) {
      await store.write(`${this.paths.frontend}/${key}`, value);
    }
    await this.become(script.state ?? 3);
  }

  /** A request with its own id. */
  request(operation: number, fields: Partial<BlkifRequest> = {}): BlkifRequest {
    const request = Object.assign(new BlkifRequest(), fields);
    request.operation = operation;
    request.idLow = ++this.#id;
    return request;
  }

  /** A transfer of `count` whole pages of data, from page `first` on. */
  transfer(operation: number, sector: number, count: number, first = 0): BlkifRequest {
    const request = this.request(operation, { sectorLow: sector, segmentCount: count });
    for (let i = 0; i < count; i++) {
      request.references[i] = this.data.references[first + i]!;
      request.lastSectors[i] = 7;
    }
    return request;
  }

  /** Bytes of a page of data. */
  page(index: number): Uint8Array {
    const at = this.data.start + index * PAGE_SIZE;
    return this.data.region.bytes.subarray(at, at + PAGE_SIZE);
  }

  /** Puts requests on the ring and publishes them. */
  send(...requests: BlkifRequest[]): void {
    for (const request of requests) this.ring.push(request);
    if (this.ring.publish()) this.channel.notify();
    this.domain.reactor.soon();
  }

  /** The next response, within a second. */
  async receive(): Promise<BlkifResponse> {
    const started = performance.now();
    while (this.ring.pending() < 1) {
      assert.ok(performance.now() - started < 1000, "no response");
      await turn();
    }
    const response = new BlkifResponse();
    this.ring.consume(response);
    return response;
  }

  /** Sends one request and returns its status. */
  async status(request: BlkifRequest): Promise<number> {
    this.send(request);
    const response = await this.receive();
    assert.equal(response.idLow, request.idLow);
    return response.status;
  }

  /** Says goodbye as a driver does; leaves the pages to the domain's end where the backend still maps them. */
  async close(): Promise<void> {
    await this.become(5);
    await this.backendIs(5, 6);
    await this.become(6);
    await this.backendIs(6);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.channel?.[Symbol.dispose]();
    this.data?.[Symbol.dispose]();
    this.ringPages?.[Symbol.dispose]();
  }
}
