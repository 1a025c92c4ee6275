/** A backend under a test's control: it shows the keys it is told to, and answers what the test says. */
import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { BackRing } from "../../src/ring/back-ring.ts";
import { BlkifRequest, blkifLayout } from "../../src/wire/blkif.ts";
import type { ContiguousMapping, Domain, EventChannel } from "../../src/xen/domain.ts";
import type { VbdPaths } from "../../src/xen/toolstack.ts";
import { parseState, readNumber } from "../../src/xen/xenbus.ts";

/** What every backend shows. */
const PLAIN = { sectors: "2048", "sector-size": "512", info: "0" };

export class ScriptedBackend implements Disposable {
  readonly domain: Domain;
  readonly paths: VbdPaths;
  ring!: BackRing;
  mapping!: ContiguousMapping;
  channel!: EventChannel;
  /** Requests that arrived. */
  readonly seen: BlkifRequest[] = [];
  /** Answers a request; nothing is answered where it is undefined. */
  onrequest: ((request: BlkifRequest) => void) | undefined;

  constructor(domain: Domain, paths: VbdPaths) {
    this.domain = domain;
    this.paths = paths;
  }

  async become(state: number): Promise<void> {
    await this.domain.store.write(`${this.paths.backend}/state`, String(state));
  }

  async frontendIs(...states: number[]): Promise<void> {
    const started = performance.now();
    for (;;) {
      const state = parseState(await this.domain.store.read(`${this.paths.frontend}/state`));
      if (states.includes(state)) return;
      assert.ok(performance.now() - started < 5000, `the frontend stays in ${state}`);
      await turn();
    }
  }

  async write(keys: Record<string, string>): Promise<void> {
    for (const [key, value] of Object.entries(keys)) {
      await this.domain.store.write(`${this.paths.backend}/${key}`, value);
    }
  }

  /** Offers, waits for the frontend's ring, and shows the device with these keys. */
  async connect(frontendDomid: number, keys: Record<string, string> = {}): Promise<void> {
    const { store, grants, events } = this.domain;
    const front = this.paths.frontend;
    await this.write(keys);
    await this.become(2);
    await this.frontendIs(3);
    const order = (await readNumber(store, `${front}/ring-page-order`)) ?? 0;
    const references: number[] = [];
    for (let i = 0; i < 1 << order; i++) {
      const key = order === 0 ? "ring-ref" : `ring-ref${i}`;
      references.push((await readNumber(store, `${front}/${key}`))!);
    }
    const mapping = grants.mapContiguous(frontendDomid, references, false);
    assert.ok(typeof mapping === "object");
    this.mapping = mapping;
    this.ring = new BackRing(mapping.bytes, blkifLayout("x86_64-abi"));
    const port = (await readNumber(store, `${front}/event-channel`))!;
    this.channel = events.bindInterdomain(frontendDomid, port);
    this.channel.onevent = () => this.take();
    await this.write({ ...PLAIN, ...keys });
    await this.become(4);
  }

  take(): void {
    do {
      while (this.ring.pending() > 0) {
        const request = new BlkifRequest();
        this.ring.consume(request);
        this.seen.push(request);
        this.onrequest?.(request);
      }
    } while (this.ring.finalCheck());
    this.publish();
  }

  answer(request: BlkifRequest, status: number): void {
    const operation = request.operation === 6 ? request.indirectOperation : request.operation;
    this.ring.respond(request.idLow, request.idHigh, operation, status);
  }

  publish(): void {
    if (this.ring.publish()) this.channel.notify();
    this.domain.reactor.soon();
  }

  [Symbol.dispose](): void {
    this.channel?.[Symbol.dispose]();
    this.mapping?.[Symbol.dispose]();
  }
}
