/**
 * What any world behind the hypervisor port must do, as tests of node:test: whoever writes one passes it, and drivers run
 * in it unchanged. The two domains of a test may be one and the same, seen twice.
 *
 * What worlds may differ in is not looked at: which status refuses a grant, and when a page that a peer keeps is lost.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { allocateRegion } from "../io/memory.ts";
import {
  DOMID_FIRST_RESERVED,
  type Domain,
  type EventChannel,
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCopyEnd,
  GrantMapBatch,
  GrantStatus,
  type OwnPages,
  PAGE_SIZE,
} from "../xen/domain.ts";
import { until } from "./vbd-pair.ts";

/** Two domains of one thread. */
export interface OpenedDomains extends AsyncDisposable {
  /** Grants pages and offers ports. */
  readonly front: Domain;
  /** Maps pages and binds ports. */
  readonly back: Domain;
  /** A xenstore path below which both may write. */
  readonly path: string;
}

export interface DomainSuiteOptions {
  open(): Promise<OpenedDomains>;
}

/** A test that takes longer hangs. */
const TIMEOUT_MILLISECONDS = 30_000;
const EVENT_MILLISECONDS = 10_000;
/** More pages than any test's domain can grant. */
const TOO_MANY_PAGES = 1 << 20;
/** No grant has this reference. */
const NO_REFERENCE = 0x00ff_fff0;

export function domainSuite(name: string, options: DomainSuiteOptions): void {
  const suite = (sentence: string, body: (domains: OpenedDomains) => Promise<void> | void) =>
    test(`${name}: ${sentence}`, { timeout: TIMEOUT_MILLISECONDS }, async () => {
      await using domains = await options.open();
      await body(domains);
    });
  grants(suite);
  copies(suite);
  events(suite);
  stores(suite);
}

type Suite = (sentence: string, body: (domains: OpenedDomains) => Promise<void> | void) => void;

function grants(suite: Suite): void {
  suite("a mapped page is the granter's page, both ways, until it is unmapped", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 1);
    const [mapped] = mapAll(domains, pages.references, { together: false });
    pageOf(pages, 0)[17] = 0xab;
    assert.equal(mapped!.bytes[17], 0xab);
    mapped!.bytes[4095] = 0xcd;
    assert.equal(pageOf(pages, 0)[4095], 0xcd);
    assert.equal(back.grants.counters.mapped, 1);
    assert.equal(front.grants.counters.granted, 1);
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.okay);
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.badHandle);
    assert.equal(back.grants.counters.mapped, 0);
    assert.ok(pages.endAccess(0));
    assert.equal(pages.references[0], 0);
    assert.equal(front.grants.counters.granted, 0);
  });

  for (const together of [false, true]) {
    const how = together ? "together" : "apart";
    suite(`pages that are mapped ${how} are each its own, and are given back one by one`, (domains) => {
      const { back } = domains;
      const count = 12;
      using pages = granted(domains, count);
      for (let i = 0; i < count; i++) pageOf(pages, i).fill(i + 1);
      const mapped = mapAll(domains, pages.references, { together });
      for (const [i, { bytes }] of mapped.entries()) {
        assert.ok(
          bytes.every((byte) => byte === i + 1),
          `page ${i}`,
        );
      }
      assert.equal(back.grants.counters.mapped, count);
      for (const { handle } of mapped.toReversed()) {
        assert.equal(back.grants.unmap(handle), GrantStatus.okay);
      }
      assert.equal(back.grants.counters.mapped, 0);
      assert.equal(back.grants.counters.unmaps, count);
    });

    suite(`a batch mapped ${how} maps what it can and refuses what it cannot`, (domains) => {
      const { back } = domains;
      using pages = granted(domains, 3, (i) => i === 1);
      const references = [...pages.references, NO_REFERENCE];
      const batch = mapBatch(domains, references, { together });
      assert.equal(batch.statuses[0], GrantStatus.okay);
      assert.notEqual(batch.statuses[1], GrantStatus.okay, "read-only, mapped for writing");
      assert.equal(batch.statuses[2], GrantStatus.okay);
      assert.notEqual(batch.statuses[3], GrantStatus.okay);
      assert.equal(back.grants.counters.mapped, 2);
      pageOf(pages, 2)[5] = 55;
      assert.equal(bytesOf(batch, 2)[5], 55);
      for (const i of [0, 2]) back.grants.unmap(batch.handles[i]!);
      assert.equal(back.grants.counters.mapped, 0);
    });
  }

  suite("a page that is granted read-only can be read", (domains) => {
    using pages = granted(domains, 1, () => true);
    pageOf(pages, 0).fill(9);
    const [mapped] = mapAll(domains, pages.references, { readOnly: true });
    assert.ok(mapped!.bytes.every((byte) => byte === 9));
    domains.back.grants.unmap(mapped!.handle);
  });

  suite("a number that is no domain's maps nothing", ({ back }) => {
    const batch = new GrantMapBatch(2);
    batch.count = 2;
    batch.references.fill(9);
    for (const peer of [DOMID_FIRST_RESERVED, -1, 1e9, 0.5]) {
      back.grants.map(peer, batch);
      assert.deepEqual([...batch.statuses], [GrantStatus.badDomain, GrantStatus.badDomain]);
      assert.notEqual(back.grants.mapContiguous(peer, [9], false), GrantStatus.okay);
    }
    assert.equal(back.grants.unmap(12345), GrantStatus.badHandle);
    assert.equal(back.grants.counters.maps, 0);
  });

  suite("several pages are mapped side by side, or not at all", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 4);
    for (let i = 0; i < 4; i++) pageOf(pages, i).fill(i + 1);
    const references = [...pages.references];
    {
      const mapping = back.grants.mapContiguous(front.id, references, false);
      assert.ok(typeof mapping === "object");
      using contiguous = mapping;
      assert.equal(contiguous.bytes.length, 4 * PAGE_SIZE);
      for (let i = 0; i < 4; i++) assert.equal(contiguous.bytes[i * PAGE_SIZE + 1], i + 1);
      contiguous.bytes[3 * PAGE_SIZE] = 77;
      assert.equal(pageOf(pages, 3)[0], 77);
      assert.equal(back.grants.counters.mapped, 4);
    }
    assert.equal(back.grants.counters.mapped, 0);
    references[2] = NO_REFERENCE;
    assert.equal(typeof back.grants.mapContiguous(front.id, references, false), "number");
    assert.equal(typeof back.grants.mapContiguous(front.id, [], false), "number");
    assert.equal(back.grants.counters.mapped, 0);
  });

  suite("pages come zeroed, keep what they hold, and come zeroed again", (domains) => {
    const { front, back } = domains;
    for (let round = 0; round < 3; round++) {
      using pages = front.grants.allocate(4)!;
      assert.equal(pages.count, 4);
      for (let i = 0; i < 4; i++) {
        assert.ok(
          pageOf(pages, i).every((byte) => byte === 0),
          `page ${i}`,
        );
        pageOf(pages, i).fill(0xf0 + i);
      }
      assert.ok(pages.grant(1, back.id, false));
      assert.ok(pages.grant(2, back.id, false));
      assert.ok(pages.endAccess(1));
      for (let i = 0; i < 4; i++) assert.equal(pageOf(pages, i)[100], 0xf0 + i);
    }
    assert.equal(front.grants.counters.granted, 0);
    assert.equal(front.grants.allocate(TOO_MANY_PAGES), undefined);
  });

  suite("a page that a peer still maps never becomes a page of ours again", (domains) => {
    const { front, back } = domains;
    const pages = granted(domains, 1);
    const [mapped] = mapAll(domains, pages.references, {});
    pages[Symbol.dispose]();
    pages[Symbol.dispose]();
    mapped!.bytes.fill(0x5a);
    using later = front.grants.allocate(16)!;
    const whole = later.region.bytes.subarray(later.start, later.start + 16 * PAGE_SIZE);
    assert.ok(whole.every((byte) => byte === 0));
    whole.fill(0xa5);
    assert.ok(mapped!.bytes.every((byte) => byte === 0x5a));
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.okay);
  });

  suite("who waits for grant entries is called back", async (domains) => {
    const { grants: table } = domains.front;
    let called = 0;
    table.whenFree(1, () => called++);
    table.whenFree(1, () => assert.fail("it does not wait any more"))[Symbol.dispose]();
    await until(
      () => called || undefined,
      () => "no call",
      EVENT_MILLISECONDS,
    );
    assert.equal(called, 1);
  });
}

function copies(suite: Suite): void {
  suite("copies go from grants, to grants and between them", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2);
    const [first, second] = [0, 1].map((i) => ({
      peer: front.id,
      reference: pages.references[i]!,
    }));
    const local = Uint8Array.from({ length: 100 }, (_, i) => i + 1);
    const result = new Uint8Array(300);
    const operations = [
      copyOf(local, { ...first!, offset: 3996 }, 100),
      copyOf({ ...first!, offset: 3996 }, { ...second!, offset: 8 }, 100),
      copyOf({ ...second!, offset: 8 }, result.subarray(100), 100),
      copyOf(result.subarray(100, 200), result, 100),
    ];
    back.grants.copy(operations);
    assert.deepEqual(statusesOf(operations), [0, 0, 0, 0]);
    assert.deepEqual(pageOf(pages, 0).slice(3996), local);
    assert.deepEqual(pageOf(pages, 1).slice(8, 108), local);
    assert.deepEqual(result, Uint8Array.from([...local, ...local, ...new Uint8Array(100)]));
    assert.equal(back.grants.counters.copies, 4);
    assert.equal(back.grants.counters.mapped, 0);
  });

  suite("each copy has its own status, and a wrong one moves nothing", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2, (i) => i === 1);
    const [writable, readOnly] = pages.references as unknown as [number, number];
    pageOf(pages, 0).fill(3);
    pageOf(pages, 1).fill(4);
    const local = new Uint8Array(200);
    const at = (reference: number, offset: number): GrantCopyEnd => {
      return { peer: front.id, reference, offset };
    };
    const operations = [
      copyOf(at(writable, 0), local, 100),
      copyOf(at(writable, 4000), local.subarray(100), 97),
      copyOf(local, at(readOnly, 0), 100),
      copyOf(at(NO_REFERENCE, 0), local.subarray(100), 100),
      copyOf(at(writable, 0), local, 201),
      copyOf(at(writable, -1), local, 1),
      copyOf(at(writable, 0.5), local, 1),
      copyOf(at(writable, 0), local, -1),
      copyOf(at(readOnly, 10), local.subarray(100), 50),
    ];
    back.grants.copy(operations);
    const { okay, badCopyArgument } = GrantStatus;
    const statuses = statusesOf(operations);
    assert.equal(statuses[0], okay);
    assert.equal(statuses[1], badCopyArgument);
    assert.ok(statuses[2]! < 0 && statuses[3]! < 0);
    for (const i of [4, 5, 6, 7]) assert.equal(statuses[i], badCopyArgument);
    assert.equal(statuses[8], okay);
    const expected = new Uint8Array(200);
    expected.fill(3, 0, 100);
    expected.fill(4, 100, 150);
    assert.deepEqual(local, expected);
    assert.ok(pageOf(pages, 1).every((byte) => byte === 4));
  });

  suite("parts of pages go to their images and back, each with its own status", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 3, (i) => i === 2);
    for (let i = 0; i < 3; i++) pageOf(pages, i).fill(i + 1);
    const [first, second, readOnly] = [...pages.references] as [number, number, number];
    const batch = copyBatch(
      [first, NO_REFERENCE, second, readOnly],
      [
        [0, PAGE_SIZE],
        [0, 512],
        [512, 1024],
        [3584, 512],
      ],
    );
    const image = (i: number) => batch.bytes.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
    const { copies: before } = back.grants.counters;
    back.grants.copyPages(front.id, batch, false);
    assert.deepEqual(
      [...batch.statuses].map((status) => status === GrantStatus.okay),
      [true, false, true, true],
    );
    const expected = new Uint8Array(PAGE_SIZE);
    assert.deepEqual(image(0), new Uint8Array(PAGE_SIZE).fill(1));
    assert.deepEqual(image(1), expected);
    assert.deepEqual(image(2), expected.slice().fill(2, 512, 1536));
    assert.deepEqual(image(3), expected.slice().fill(3, 3584, 4096));
    batch.bytes.fill(9);
    back.grants.copyPages(front.id, batch, true);
    assert.deepEqual(
      [...batch.statuses].map((status) => status === GrantStatus.okay),
      [true, false, true, false],
    );
    assert.deepEqual(pageOf(pages, 0).slice(), new Uint8Array(PAGE_SIZE).fill(9));
    assert.deepEqual(
      pageOf(pages, 1).slice(),
      new Uint8Array(PAGE_SIZE).fill(2).fill(9, 512, 1536),
    );
    assert.deepEqual(pageOf(pages, 2).slice(), new Uint8Array(PAGE_SIZE).fill(3));
    assert.equal(back.grants.counters.copies, before + 5);
    assert.equal(back.grants.counters.mapped, 0);
    back.grants.copyPages(DOMID_FIRST_RESERVED + 1, batch, false);
    assert.ok(batch.statuses.every((status) => status !== GrantStatus.okay));
  });

  suite("many copies are made at once", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 8);
    const local = new Uint8Array(8 * PAGE_SIZE);
    const operations: GrantCopy[] = [];
    for (let i = 0; i < 600; i++) {
      const offset = (i * 512) % (8 * PAGE_SIZE);
      const reference = pages.references[Math.floor(offset / PAGE_SIZE)]!;
      const end = { peer: front.id, reference, offset: offset % PAGE_SIZE };
      operations.push(copyOf(end, local.subarray(offset, offset + 512), 512));
    }
    for (let i = 0; i < 8; i++) pageOf(pages, i).fill(i + 1);
    back.grants.copy(operations);
    assert.ok(statusesOf(operations).every((status) => status === GrantStatus.okay));
    for (let i = 0; i < 8; i++) assert.equal(local[i * PAGE_SIZE + 511], i + 1);
  });
}

/** Page i of the batch has its image at page i of the memory; parts are `offset` and `length` of each. */
function copyBatch(
  references: readonly number[],
  parts: readonly (readonly [offset: number, length: number])[],
): GrantCopyBatch & { readonly bytes: Uint8Array } {
  const count = references.length;
  const region = allocateRegion(count * PAGE_SIZE);
  return {
    count,
    bytes: region.bytes,
    references: Uint32Array.from(references),
    offsets: Uint16Array.from(parts, ([offset]) => offset),
    lengths: Uint16Array.from(parts, ([, length]) => length),
    regions: references.map(() => region),
    starts: Float64Array.from(references, (_, i) => i * PAGE_SIZE),
    statuses: new Int8Array(count).fill(GrantStatus.tryAgain),
  };
}

function events(suite: Suite): void {
  suite("events go both ways, and several before the delivery are few", async (domains) => {
    using pair = boundChannels(domains);
    const { offered, bound } = pair;
    const [there, here] = [counted(bound), counted(offered)];
    for (let round = 1; round <= 20; round++) {
      const [fromFront, fromBack] = [there.count, here.count];
      for (let i = 0; i < 10; i++) offered.notify();
      await there.after(fromFront);
      bound.notify();
      await here.after(fromBack);
    }
    assert.ok(there.count <= 20 * 10);
    assert.equal(here.count, 20);
    const sent = domains.front.events.counters.sent + domains.back.events.counters.sent;
    assert.ok(sent >= 20 * 11);
  });

  suite("an event waits for its handler, and while it is masked", async (domains) => {
    using pair = boundChannels(domains);
    const { offered, bound } = pair;
    bound.notify();
    await settled();
    const here = counted(offered);
    await here.after(0);
    offered.mask();
    const before = here.count;
    bound.notify();
    bound.notify();
    await settled();
    assert.equal(here.count, before);
    offered.unmask();
    await here.after(before);
    assert.equal(here.count, before + 1);
    bound.notify();
    await here.after(before + 1);
  });

  suite("a handler that answers its own event does not lose one", async (domains) => {
    using pair = boundChannels(domains);
    const { offered, bound } = pair;
    let rallies = 0;
    bound.onevent = () => bound.notify();
    offered.onevent = () => {
      if (++rallies < 100) offered.notify();
    };
    offered.notify();
    await until(
      () => rallies >= 100 || undefined,
      () => `${rallies} rallies`,
      EVENT_MILLISECONDS,
    );
  });

  suite("a port that is closed brings nothing, and its peer can be bound again", async (domains) => {
    const { front, back } = domains;
    using pair = boundChannels(domains);
    const { offered, bound } = pair;
    const here = counted(offered);
    bound[Symbol.dispose]();
    bound[Symbol.dispose]();
    bound.notify();
    offered.notify();
    await settled();
    const before = here.count;
    using again = back.events.bindInterdomain(front.id, offered.port);
    again.notify();
    await here.after(before);
  });

  suite("a port that is not offered to us cannot be bound", ({ front, back }) => {
    using offered = front.events.allocateUnbound(back.id);
    using _bound = back.events.bindInterdomain(front.id, offered.port);
    const refused = { name: "XenError", code: "EINVAL" };
    assert.throws(() => back.events.bindInterdomain(front.id, offered.port), refused);
    assert.throws(() => back.events.bindInterdomain(0x7abc, offered.port), { code: "ESRCH" });
    assert.throws(() => front.events.allocateUnbound(1e9), refused);
  });

  suite("a hundred ports are each heard", async (domains) => {
    const { front, back } = domains;
    using ends = new DisposableStack();
    const offered: EventChannel[] = [];
    const heard = new Set<number>();
    for (let i = 0; i < 100; i++) {
      const channel = ends.use(front.events.allocateUnbound(back.id));
      ends.use(back.events.bindInterdomain(front.id, channel.port)).onevent = () => heard.add(i);
      offered.push(channel);
    }
    await until(
      () => heard.size === 100 || undefined,
      () => "the first events",
      EVENT_MILLISECONDS,
    );
    heard.clear();
    for (const channel of offered) channel.notify();
    await until(
      () => heard.size === 100 || undefined,
      () => `${heard.size}`,
      EVENT_MILLISECONDS,
    );
  });
}

function stores(suite: Suite): void {
  suite("what one writes into the xenstore, the other reads and is told of", async (domains) => {
    const { front, back, path } = domains;
    const node = `${path}/a/b`;
    const seen: string[] = [];
    await using _watch = await back.store.watch(path, (changed) => seen.push(changed));
    await front.store.write(node, "value");
    assert.equal(await back.store.read(node), "value");
    await until(
      () => seen.includes(node) || undefined,
      () => seen.join(),
      EVENT_MILLISECONDS,
    );
    assert.deepEqual(await back.store.list(`${path}/a`), ["b"]);
    await front.store.transaction(async (operations) => {
      await operations.write(node, "other");
      await operations.write(`${path}/c`, "");
    });
    assert.equal(await back.store.read(node), "other");
    await front.store.remove(`${path}/a`);
    assert.equal(await back.store.read(node), undefined);
  });

  suite("a domain that ends gives back what it had, and its peer goes on", async (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2);
    using offered = front.events.allocateUnbound(back.id);
    mapAll(domains, pages.references, { together: true });
    const bound = back.events.bindInterdomain(front.id, offered.port);
    assert.ok(
      typeof back.grants.mapContiguous(front.id, [...pages.references], false) === "object",
    );
    await back[Symbol.asyncDispose]();
    await back[Symbol.asyncDispose]();
    assert.equal(back.grants.counters.mapped, 0);
    bound.notify();
    offered.notify();
    pageOf(pages, 0).fill(1);
    assert.equal(pageOf(pages, 0)[0], 1);
  });
}

/** Pages of `front`'s that `back` was granted. */
function granted(
  { front, back }: OpenedDomains,
  count: number,
  readOnly: (index: number) => boolean = () => false,
): OwnPages {
  const pages = front.grants.allocate(count);
  assert.ok(pages !== undefined, `no room for ${count} pages`);
  for (let i = 0; i < count; i++) assert.ok(pages.grant(i, back.id, readOnly(i)));
  return pages;
}

function pageOf({ region, start }: OwnPages, index: number): Uint8Array {
  return region.bytes.subarray(start + index * PAGE_SIZE, start + (index + 1) * PAGE_SIZE);
}

interface MapOptions {
  readonly together?: boolean;
  readonly readOnly?: boolean;
}

function mapBatch(
  { front, back }: OpenedDomains,
  references: ArrayLike<number>,
  { together = false, readOnly = false }: MapOptions,
): GrantMapBatch {
  const batch = new GrantMapBatch(references.length);
  batch.count = references.length;
  batch.together = together;
  batch.references.set(references);
  batch.readOnly.fill(readOnly ? 1 : 0);
  back.grants.map(front.id, batch);
  return batch;
}

function bytesOf(batch: GrantMapBatch, index: number): Uint8Array {
  const start = batch.starts[index]!;
  return batch.regions[index]!.bytes.subarray(start, start + PAGE_SIZE);
}

function mapAll(
  domains: OpenedDomains,
  references: ArrayLike<number>,
  options: MapOptions,
): { readonly bytes: Uint8Array; readonly handle: number }[] {
  const batch = mapBatch(domains, references, options);
  assert.ok(batch.statuses.every((status) => status === GrantStatus.okay));
  return Array.from(batch.handles, (handle, i) => ({ bytes: bytesOf(batch, i), handle }));
}

function copyOf(source: GrantCopyEnd, destination: GrantCopyEnd, length: number): GrantCopy {
  return { source, destination, length, status: GrantStatus.tryAgain };
}

function statusesOf(operations: readonly GrantCopy[]): number[] {
  return operations.map(({ status }) => status);
}

function boundChannels({ front, back }: OpenedDomains): {
  readonly offered: EventChannel;
  readonly bound: EventChannel;
} & Disposable {
  const ends = new DisposableStack();
  const offered = ends.use(front.events.allocateUnbound(back.id));
  const bound = ends.use(back.events.bindInterdomain(front.id, offered.port));
  return { offered, bound, [Symbol.dispose]: () => ends.dispose() };
}

/** Counts the events of a channel. */
function counted(channel: EventChannel): {
  readonly count: number;
  after(count: number): Promise<unknown>;
} {
  let count = 0;
  channel.onevent = () => count++;
  return {
    get count() {
      return count;
    },
    after: (than) =>
      until(
        () => count > than || undefined,
        () => `${count}`,
        EVENT_MILLISECONDS,
      ),
  };
}

/** Time enough for an event that should not come. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 20));
}
