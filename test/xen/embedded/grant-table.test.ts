import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import {
  DOMID_SELF,
  type GrantCopy,
  type GrantCopyEnd,
  GrantMapBatch,
  GrantStatus,
  type OwnPages,
  PAGE_SIZE,
} from "../../../src/xen/domain.ts";
import type { EmbeddedDomain } from "../../../src/xen/embedded/domain.ts";
import {
  GTF_reading,
  GTF_sub_page,
  GTF_writing,
  shapeOf,
} from "../../../src/xen/embedded/layout.ts";
import { PeerGrants } from "../../../src/xen/embedded/peer-grants.ts";
import { Village } from "./pair.ts";

const FRONT = 5;
const BACK = 0;

function pair(pages?: number, entries?: number): { front: EmbeddedDomain; back: EmbeddedDomain } {
  const village = new Village();
  return {
    front: village.domain(FRONT, pages, { grantEntries: entries ?? 64 }),
    back: village.domain(BACK),
  };
}

function allocate(domain: EmbeddedDomain, count = 1): OwnPages {
  const pages = domain.grants.allocate(count);
  assert.ok(pages !== undefined);
  return pages;
}

/** Maps one reference: its status and handle, with where the page lies. */
function mapOne(
  domain: EmbeddedDomain,
  peer: number,
  reference: number,
  readOnly = false,
): { status: number; handle: number; bytes: Uint8Array } {
  const batch = new GrantMapBatch(1);
  batch.count = 1;
  batch.references[0] = reference;
  batch.readOnly[0] = readOnly ? 1 : 0;
  domain.grants.map(peer, batch);
  const start = batch.starts[0]!;
  const bytes = batch.regions[0]?.bytes.subarray(start, start + PAGE_SIZE) ?? new Uint8Array(0);
  return { status: batch.statuses[0]!, handle: batch.handles[0]!, bytes };
}

interface SimpleCopy {
  peer?: number;
  reference: number;
  offset?: number;
  length?: number;
  local?: Uint8Array;
  direction?: "fromPeer" | "toPeer";
}

function copyBetween(
  domain: EmbeddedDomain,
  source: GrantCopyEnd,
  destination: GrantCopyEnd,
  length: number,
): number {
  const operation: GrantCopy = { source, destination, length, status: GrantStatus.tryAgain };
  domain.grants.copy([operation]);
  return operation.status;
}

/** Between a page of FRONT and memory of the domain's own. */
function copyOne(domain: EmbeddedDomain, copy: SimpleCopy): number {
  const { peer = FRONT, reference, offset = 0, length = PAGE_SIZE } = copy;
  const { local = new Uint8Array(PAGE_SIZE), direction = "fromPeer" } = copy;
  const page = { peer, reference, offset };
  return direction === "fromPeer"
    ? copyBetween(domain, page, local, length)
    : copyBetween(domain, local, page, length);
}

const flags = (domain: EmbeddedDomain, reference: number): number =>
  domain.memory.grantHalves[reference * 4]!;

test("a mapped page is the granter's page, and its entry says so until the unmapping", () => {
  const { front, back } = pair();
  const pages = allocate(front);
  assert.ok(pages.grant(0, BACK, false));
  const mapped = mapOne(back, FRONT, pages.references[0]!);
  assert.equal(mapped.status, GrantStatus.okay);
  pages.region.bytes[pages.start + 17] = 0xab;
  assert.equal(mapped.bytes[17], 0xab);
  assert.equal(flags(front, pages.references[0]!) & (GTF_reading | GTF_writing), 24);
  assert.equal(pages.endAccess(0), false);
  assert.equal(back.grants.unmap(mapped.handle), GrantStatus.okay);
  assert.equal(back.grants.unmap(mapped.handle), GrantStatus.badHandle);
  assert.equal(pages.endAccess(0), true);
  assert.equal(pages.references[0], 0);
});

test("every refusal of a mapping has its status and leaves no mark", () => {
  const { front, back } = pair();
  const pages = allocate(front, 4);
  pages.grant(0, BACK, true);
  pages.grant(1, BACK, false);
  pages.grant(2, 9, false);
  const [readOnly, writable, others] = pages.references as unknown as [number, number, number];
  assert.equal(mapOne(back, 77, writable).status, GrantStatus.badDomain);
  assert.equal(mapOne(back, 1e9, writable).status, GrantStatus.badDomain);
  assert.equal(mapOne(back, FRONT, 64).status, GrantStatus.badGrantReference);
  assert.equal(mapOne(back, FRONT, 0xffffffff).status, GrantStatus.badGrantReference);
  assert.equal(mapOne(back, DOMID_SELF, writable).status, GrantStatus.badDomain);
  assert.equal(mapOne(back, FRONT, 0).status, GrantStatus.generalError);
  assert.equal(mapOne(back, FRONT, others).status, GrantStatus.generalError);
  assert.equal(mapOne(back, FRONT, readOnly, false).status, GrantStatus.generalError);
  front.memory.grantWords[writable * 2 + 1] = 1;
  assert.equal(mapOne(back, FRONT, writable).status, GrantStatus.badPage);
  front.memory.grantWords[writable * 2 + 1] = 64;
  assert.equal(mapOne(back, FRONT, writable).status, GrantStatus.badPage);
  assert.equal(back.grants.unmap(12345), GrantStatus.badHandle);
  assert.equal(back.grants.counters.mapped, 0);
  assert.equal(back.grants.counters.maps, 0);
  for (let i = 0; i < 3; i++) assert.ok(pages.endAccess(i));
});

test("a batch maps what it can and names what it cannot", () => {
  const { front, back } = pair();
  const pages = allocate(front, 3);
  for (let i = 0; i < 3; i++) pages.grant(i, BACK, i === 1);
  const batch = new GrantMapBatch(4);
  batch.count = 4;
  batch.references.set([...pages.references, 63]);
  back.grants.map(FRONT, batch);
  assert.deepEqual([...batch.statuses], [0, GrantStatus.generalError, 0, GrantStatus.generalError]);
  assert.equal(back.grants.counters.mapped, 2);
});

test("a peer that has as much mapped as it may finds no space, and the others do not notice", () => {
  const village = new Village();
  const [greedy, modest] = [village.domain(1), village.domain(2)];
  const counters = { granted: 0, mapped: 0, maps: 0, unmaps: 0, copies: 0, quarantined: 0 };
  using grants = new PeerGrants(shapeOf(BACK, 64, { grantEntries: 64 }), village, counters, 3);
  const batch = new GrantMapBatch(5);
  batch.count = 5;
  const [page, other] = [allocate(greedy), allocate(modest)];
  page.grant(0, BACK, false);
  other.grant(0, BACK, false);
  batch.references.fill(page.references[0]!);
  grants.map(greedy.id, batch);
  const { okay, noSpace } = GrantStatus;
  assert.deepEqual([...batch.statuses], [okay, okay, okay, noSpace, noSpace]);
  const handle = batch.handles[0]!;
  batch.count = 1;
  batch.references[0] = other.references[0]!;
  grants.map(modest.id, batch);
  assert.equal(batch.statuses[0], okay);
  assert.equal(grants.unmap(handle), okay);
  batch.references[0] = batch.references[1]!;
  grants.map(greedy.id, batch);
  assert.equal(batch.statuses[0], okay, "what was given back can be mapped again");
});

test("the writing mark goes with the last writer, the reading mark with the last user", () => {
  const { front, back } = pair();
  const pages = allocate(front);
  pages.grant(0, BACK, false);
  const reference = pages.references[0]!;
  const reader = mapOne(back, FRONT, reference, true);
  const first = mapOne(back, FRONT, reference);
  const second = mapOne(back, FRONT, reference);
  back.grants.unmap(first.handle);
  assert.equal(flags(front, reference) & 24, GTF_reading | GTF_writing);
  back.grants.unmap(second.handle);
  assert.equal(flags(front, reference) & 24, GTF_reading);
  back.grants.unmap(reader.handle);
  assert.equal(flags(front, reference) & 24, 0);
});

test("copies go both ways and check bounds, permission and reference", () => {
  const { front, back } = pair();
  const pages = allocate(front, 2);
  pages.grant(0, BACK, false);
  pages.grant(1, BACK, true);
  const [writable, readOnly] = pages.references as unknown as [number, number];
  const local = Uint8Array.from({ length: 100 }, (_, i) => i);
  const toPeer = { direction: "toPeer", local, length: 100, offset: 3996 } as const;
  assert.equal(copyOne(back, { ...toPeer, reference: writable }), GrantStatus.okay);
  assert.deepEqual(
    pages.region.bytes.slice(pages.start + 3996, pages.start + 4096),
    new Uint8Array(local),
  );
  const back100 = new Uint8Array(100);
  const from = { reference: writable, offset: 3996, length: 100, local: back100 };
  assert.equal(copyOne(back, from), GrantStatus.okay);
  assert.deepEqual(back100, local);
  assert.equal(copyOne(back, { ...from, length: 0 }), GrantStatus.okay);
  for (const wrong of [
    { offset: 3997 },
    { offset: -1 },
    { offset: 0.5 },
    { offset: Number.NaN },
    { length: 101, offset: 0 },
    { length: 2 ** 40, offset: 0 },
    { length: -1 },
  ]) {
    assert.equal(copyOne(back, { ...from, ...wrong }), GrantStatus.badCopyArgument);
  }
  assert.equal(copyOne(back, { ...from, peer: 3 }), GrantStatus.badDomain);
  assert.equal(copyOne(back, { ...from, reference: 60 }), GrantStatus.generalError);
  assert.equal(copyOne(back, { ...from, reference: 64 }), GrantStatus.badGrantReference);
  assert.equal(copyOne(back, { ...toPeer, reference: readOnly }), GrantStatus.generalError);
  assert.equal(back.grants.counters.copies, 3);
  pages[Symbol.dispose]();
  assert.equal(front.grants.counters.quarantined, 0);
});

test("a copy between two grants, of two domains or our own, checks both and leaves no mark", () => {
  const village = new Village();
  const [one, two, back] = [village.domain(1), village.domain(2), village.domain(BACK)];
  const [first, second] = [allocate(one), allocate(two)];
  const own = allocate(back);
  first.grant(0, BACK, true);
  second.grant(0, BACK, false);
  own.grant(0, BACK, false);
  const at = (peer: number, pages: OwnPages, offset = 0): GrantCopyEnd => {
    return { peer, reference: pages.references[0]!, offset };
  };
  first.region.bytes.fill(7, first.start, first.start + 10);
  const { okay, generalError, badDomain, badCopyArgument } = GrantStatus;
  assert.equal(copyBetween(back, at(1, first), at(2, second, 4086), 10), okay);
  assert.deepEqual(
    [...second.region.bytes.slice(second.start + 4086, second.start + 4096)],
    Array(10).fill(7),
  );
  assert.equal(copyBetween(back, at(2, second, 4090), at(DOMID_SELF, own), 6), okay);
  assert.equal(copyBetween(back, at(BACK, own), at(BACK, own, 2), 6), okay);
  assert.deepEqual(
    [...own.region.bytes.slice(own.start, own.start + 9)],
    [7, 7, 7, 7, 7, 7, 7, 7, 0],
  );
  assert.equal(copyBetween(back, at(2, second), at(1, first), 1), generalError, "it is read-only");
  assert.equal(copyBetween(back, at(1, first), at(3, second), 1), badDomain);
  assert.equal(copyBetween(back, at(1, first), at(2, second, 4096), 1), badCopyArgument);
  assert.equal(copyBetween(back, at(1, first), at(2, second, 4096), 0), okay, "of nothing");
  assert.equal(copyBetween(back, at(1, first), new Uint8Array(5), 6), badCopyArgument);
  for (const pages of [first, second, own]) assert.ok(pages.endAccess(0));
});

test("an entry is pinned 128 times for reading and as often for writing, and not once more", () => {
  const { front, back } = pair();
  const pages = allocate(front);
  pages.grant(0, BACK, false);
  const reference = pages.references[0]!;
  const handles: number[] = [];
  for (const readOnly of [true, false]) {
    for (let i = 0; i < 128; i++) handles.push(mapOne(back, FRONT, reference, readOnly).handle);
    assert.equal(mapOne(back, FRONT, reference, readOnly).status, GrantStatus.generalError);
  }
  assert.equal(back.grants.counters.mapped, 256);
  for (const handle of handles) assert.equal(back.grants.unmap(handle), GrantStatus.okay);
  assert.ok(pages.endAccess(0));
});

test("what a granter writes into an entry that is pinned changes nothing until the last pin goes", () => {
  const { front, back } = pair();
  const pages = allocate(front, 2);
  pages.grant(0, BACK, false);
  const reference = pages.references[0]!;
  const first = mapOne(back, FRONT, reference);
  front.memory.grantWords[reference * 2] = 9 << 16;
  front.memory.grantWords[reference * 2 + 1] = 1;
  const second = mapOne(back, FRONT, reference);
  assert.equal(second.status, GrantStatus.okay);
  assert.equal(second.bytes.byteOffset, first.bytes.byteOffset);
  back.grants.unmap(first.handle);
  back.grants.unmap(second.handle);
  assert.equal(mapOne(back, FRONT, reference).status, GrantStatus.generalError);
});

test("an entry with the sub-page mark of version 2 is refused for mappings, and copied from as a whole page", () => {
  const { front, back } = pair();
  const pages = allocate(front);
  pages.grant(0, BACK, false);
  const reference = pages.references[0]!;
  Atomics.or(front.memory.grantHalves, reference * 4, GTF_sub_page);
  assert.equal(mapOne(back, FRONT, reference).status, GrantStatus.generalError);
  assert.equal(mapOne(back, FRONT, reference, true).status, GrantStatus.generalError);
  for (const direction of ["fromPeer", "toPeer"] as const) {
    assert.equal(copyOne(back, { reference, direction }), GrantStatus.okay);
  }
  assert.equal(flags(front, reference) & 24, 0);
});

test("a domain with few maptrack entries finds no space, and again some when it unmaps", () => {
  const village = new Village();
  const back = village.domain(BACK, 64, { grantEntries: 64, maptrackEntries: 2 });
  const pages = [1, 2, 3].map((domid) => {
    const granted = allocate(village.domain(domid));
    granted.grant(0, BACK, false);
    return granted.references[0]!;
  });
  const [first, second, third] = pages.map((reference, i) => mapOne(back, i + 1, reference));
  assert.deepEqual([first!.status, second!.status, third!.status], [0, 0, GrantStatus.noSpace]);
  back.grants.unmap(first!.handle);
  assert.equal(mapOne(back, 3, pages[2]!).status, GrantStatus.okay);
});

test("a copy leaves the marks of a mapping of the same page alone", () => {
  const { front, back } = pair();
  const pages = allocate(front);
  pages.grant(0, BACK, false);
  const reference = pages.references[0]!;
  const { handle } = mapOne(back, FRONT, reference, true);
  assert.equal(copyOne(back, { reference, direction: "toPeer" }), GrantStatus.okay);
  assert.equal(flags(front, reference) & 24, GTF_reading);
  back.grants.unmap(handle);
});

test("a page that a peer still maps is quarantined and never used again", () => {
  const { front, back } = pair();
  const free = front.grants.freePages;
  const pages = allocate(front, 2);
  pages.grant(0, BACK, false);
  pages.grant(1, BACK, false);
  const { start } = pages;
  const mapped = mapOne(back, FRONT, pages.references[0]!);
  pages[Symbol.dispose]();
  pages[Symbol.dispose]();
  assert.equal(front.grants.counters.quarantined, 1);
  assert.equal(front.grants.counters.granted, 0);
  assert.equal(front.grants.freePages, free - 1);
  back.grants.unmap(mapped.handle);
  const rest: OwnPages[] = [];
  for (let more = front.grants.allocate(1); more !== undefined; more = front.grants.allocate(1)) {
    assert.notEqual(more.start, start);
    rest.push(more);
  }
  assert.equal(rest.length, free - 1);
});

test("pages come zeroed, also those that were used before", () => {
  const { front } = pair();
  const first = allocate(front, 2);
  first.region.bytes.fill(0xff, first.start, first.start + 2 * PAGE_SIZE);
  const { start } = first;
  first[Symbol.dispose]();
  const again = allocate(front, 2);
  assert.equal(again.start, start);
  assert.ok(again.region.bytes.subarray(start, start + 2 * PAGE_SIZE).every((byte) => byte === 0));
  assert.equal(front.grants.allocate(1000), undefined);
});

test("who waits for entries is called back once there are enough, in order", () => {
  const village = new Village();
  const front = village.domain(FRONT, 64, { grantEntries: 12 });
  village.domain(BACK);
  const pages = allocate(front, 5);
  for (let i = 0; i < 4; i++) assert.ok(pages.grant(i, BACK, false));
  assert.equal(pages.grant(4, BACK, false), false);
  const called: string[] = [];
  const isCalled = (...names: string[]): void => assert.deepEqual(called, names);
  front.grants.whenFree(2, () => called.push("two"));
  front.grants.whenFree(1, () => called.push("one"));
  front.grants.whenFree(1, () => called.push("never"))[Symbol.dispose]();
  village.reactor.settle();
  isCalled();
  pages.endAccess(0);
  village.reactor.settle();
  isCalled("one");
  pages.endAccess(1);
  pages.endAccess(2);
  village.reactor.settle();
  isCalled("one", "two");
  front.grants.whenFree(1, () => called.push("at once"));
  village.reactor.settle();
  isCalled("one", "two", "at once");
});

test("pages side by side are mapped as one run; scattered ones leave nothing mapped", () => {
  const { front, back } = pair();
  const pages = allocate(front, 4);
  for (let i = 0; i < 4; i++) pages.grant(i, BACK, false);
  const references = [...pages.references];
  const ring = back.grants.mapContiguous(FRONT, references, false);
  assert.ok(typeof ring === "object");
  assert.equal(ring.bytes.length, 4 * PAGE_SIZE);
  pages.region.bytes[pages.start + 3 * PAGE_SIZE] = 9;
  assert.equal(ring.bytes[3 * PAGE_SIZE], 9);
  assert.equal(back.grants.counters.mapped, 4);
  ring[Symbol.dispose]();
  ring[Symbol.dispose]();
  assert.equal(back.grants.counters.mapped, 0);
  const status = (list: number[]): unknown => back.grants.mapContiguous(FRONT, list, false);
  assert.equal(status([...references].reverse()), GrantStatus.badVirtualAddress);
  assert.equal(status([references[0]!, 50]), GrantStatus.generalError);
  assert.equal(status([]), GrantStatus.generalError);
  assert.equal(back.grants.counters.mapped, 0);
  assert.equal(back.grants.counters.maps, back.grants.counters.unmaps);
});

test("mappings outlive the domain that granted them, and its memory goes with the last", async () => {
  const village = new Village();
  const front = village.domain(FRONT);
  const back = village.domain(BACK);
  const pages = allocate(front);
  pages.grant(0, BACK, false);
  const mapped = mapOne(back, FRONT, pages.references[0]!);
  await front[Symbol.asyncDispose]();
  assert.equal(mapOne(back, FRONT, 8).status, GrantStatus.badDomain);
  mapped.bytes[0] = 1;
  pages[Symbol.dispose]();
  assert.deepEqual(village.unmapped, []);
  back.grants.unmap(mapped.handle);
  assert.deepEqual(village.unmapped, [FRONT]);
});

test("a domain that ends unmaps what it mapped", async () => {
  const { front, back } = pair();
  const pages = allocate(front, 3);
  for (let i = 0; i < 3; i++) {
    pages.grant(i, BACK, false);
    mapOne(back, FRONT, pages.references[i]!);
  }
  await back[Symbol.asyncDispose]();
  assert.equal(back.grants.counters.mapped, 0);
  for (let i = 0; i < 3; i++) assert.ok(pages.endAccess(i));
});

test("garbage in the grant table of a peer gives statuses and no marks outside it", () => {
  fc.assert(
    fc.property(
      fc.array(fc.nat(0xffffffff), { minLength: 16, maxLength: 16 }),
      fc.array(fc.record({ reference: fc.nat(20), readOnly: fc.boolean() }), { maxLength: 20 }),
      (garbage, attempts) => {
        const { front, back } = pair();
        front.memory.grantWords.set(garbage);
        const known = new Set<number>(Object.values(GrantStatus));
        for (const { reference, readOnly } of attempts) {
          const { status, bytes } = mapOne(back, FRONT, reference, readOnly);
          assert.ok(known.has(status));
          if (status === 0) bytes.fill(1);
        }
        assert.equal(front.memory.shape.pageCount, 64);
        assert.ok(back.memory.alive && front.memory.alive);
      },
    ),
    { numRuns: 200 },
  );
});
