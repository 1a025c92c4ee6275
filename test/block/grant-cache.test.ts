import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GrantCache, type GrantCacheOptions } from "../../src/block/backend/grant-cache.ts";
import { RequestPages } from "../../src/block/backend/request-pages.ts";
import { shows } from "../../src/testing/index.ts";
import { FakeGrants } from "./doubles.ts";

function cacheOf(
  grants: FakeGrants,
  capacity: number,
  more: Partial<GrantCacheOptions> = {},
): GrantCache {
  return new GrantCache({ grants, peer: 1, capacity, batch: 256, ...more });
}

const references = (...list: number[]) => Uint32Array.from(list);

test(
  "without persistent grants every page is mapped for its request and unmapped after it",
  shows(["4.7.5"], () => {
    const grants = new FakeGrants();
    const cache = cacheOf(grants, 0);
    const pages = new RequestPages(11);
    assert.equal(cache.map(references(9, 10, 9), 3, true, pages), true);
    assert.equal(grants.handles.size, 3);
    cache.unmap(pages);
    assert.equal(grants.handles.size, 0);
    assert.equal(cache.mapped, 0);
  }),
);

test(
  "a persistent grant is mapped once and found again",
  shows(["4.1.2", "4.1.8"], () => {
    const grants = new FakeGrants();
    const cache = cacheOf(grants, 8);
    const pages = new RequestPages(11);
    for (let round = 0; round < 3; round++) {
      assert.equal(cache.map(references(9, 10), 2, round === 1, pages), true);
      cache.unmap(pages);
    }
    assert.equal(grants.maps, 2);
    assert.equal(cache.kept, 2);
    cache.clear();
    assert.equal(grants.handles.size, 0);
  }),
);

test("a reference larger than those of Linux's guests is found again, too", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 8);
  const pages = new RequestPages(11);
  for (let round = 0; round < 2; round++) {
    assert.equal(cache.map(references(32767, 32768, 0xffffffff), 3, false, pages), true);
    cache.unmap(pages);
  }
  assert.equal(grants.maps, 3);
  cache.clear();
  assert.equal(grants.handles.size, 0);
});

test("a reference used twice at once is mapped on its own the second time and kept only once", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 8);
  const first = new RequestPages(11);
  const second = new RequestPages(11);
  assert.equal(cache.map(references(9, 9), 2, false, first), true);
  assert.equal(cache.map(references(9), 1, false, second), true);
  assert.equal(grants.handles.size, 3);
  assert.equal(cache.kept, 1);
  cache.unmap(first);
  cache.unmap(second);
  assert.equal(grants.handles.size, 1);
});

test(
  "what does not fit into the cache is mapped for its request only",
  shows(["4.1.3", "4.1.4"], () => {
    const grants = new FakeGrants();
    const cache = cacheOf(grants, 2);
    const pages = new RequestPages(11);
    assert.equal(cache.map(references(9, 10, 11, 12), 4, false, pages), true);
    assert.equal(cache.overflowed, true);
    cache.unmap(pages);
    assert.equal(grants.handles.size, 2);
  }),
);

test(
  "one grant that cannot be mapped leaves nothing of its request mapped",
  shows(["4.7.8"], () => {
    const grants = new FakeGrants();
    grants.refused.add(12);
    const cache = cacheOf(grants, 2);
    const pages = new RequestPages(11);
    assert.equal(cache.map(references(9), 1, false, pages), true);
    cache.unmap(pages);
    assert.equal(cache.map(references(9, 10, 12, 13), 4, false, pages), false);
    assert.equal(grants.handles.size, 1, "the kept page alone");
    assert.equal(pages.count, 0);
    assert.equal(cache.map(references(9), 1, false, pages), true, "and it can be used again");
    assert.equal(grants.maps, 3);
    cache.unmap(pages);
  }),
);

test("after any sequence of requests nothing is mapped but what is kept, and then nothing", () => {
  const request = fc.record({
    references: fc.array(fc.integer({ min: 8, max: 20 }), { minLength: 1, maxLength: 11 }),
    readOnly: fc.boolean(),
    hold: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(request, { maxLength: 40 }), fc.nat(6), (requests, capacity) => {
      const grants = new FakeGrants();
      grants.refused.add(20);
      const cache = cacheOf(grants, capacity);
      const held: RequestPages[] = [];
      for (const { references: list, readOnly, hold } of requests) {
        const pages = new RequestPages(11);
        const mapped = cache.map(Uint32Array.from(list), list.length, readOnly, pages);
        assert.equal(mapped, !list.includes(20));
        for (let i = 0; i < pages.count; i++) assert.equal(pages.starts[i], list[i]! * 4096);
        if (mapped && hold) held.push(pages);
        else cache.unmap(pages);
        assert.equal(cache.mapped, grants.handles.size);
      }
      for (const pages of held) cache.unmap(pages);
      assert.ok(cache.kept <= capacity);
      assert.equal(grants.handles.size, cache.kept);
      cache.clear();
      assert.equal(grants.handles.size, 0);
    }),
  );
});

/** Maps references and gives them back. */
function use(cache: GrantCache, ...list: number[]): void {
  const pages = new RequestPages(list.length);
  assert.equal(cache.map(references(...list), list.length, false, pages), true);
  cache.unmap(pages);
}

test(
  "a full cache gives up those not used since the last scan, and no page in use",
  shows(["4.1.5"], () => {
    const grants = new FakeGrants();
    const cache = cacheOf(grants, 4);
    const held = new RequestPages(1);
    assert.equal(cache.map(references(8), 1, false, held), true);
    use(cache, 9, 10, 11, 12);
    assert.equal(cache.overflowed, true);
    assert.equal(cache.scan(), 1, "all were used: one of them all the same");
    assert.equal(cache.overflowed, false);
    assert.equal(grants.handles.size, 4, "still mapped");
    cache.unmapPurged(10);
    assert.equal(grants.handles.size, 3);
    // One place is free: 13 takes it, 14 overflows, and of 8, 10, 11, 13 those two were not used since the scan.
    use(cache, 13, 14);
    assert.equal(cache.overflowed, true);
    assert.equal(cache.scan(), 1);
    cache.unmapPurged(10);
    const maps = grants.maps;
    use(cache, 13);
    assert.equal(grants.maps, maps, "the one used last stayed");
    cache.unmap(held);
    cache.clear();
    assert.equal(grants.handles.size, 0);
  }),
);

test("a page that is old is given up though there is room, and mapped anew when it comes again", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 8, { unusedMilliseconds: 60_000 });
  assert.equal(cache.nextOld, Number.POSITIVE_INFINITY);
  use(cache, 9, 10);
  cache.now = 30_000;
  use(cache, 10);
  assert.equal(cache.nextOld, 60_000);
  cache.now = 60_000;
  assert.equal(cache.scan(), 1);
  use(cache, 9);
  assert.equal(grants.handles.size, 3, "the old mapping waits to be ended, the new one lives");
  assert.equal(cache.mapped, 3);
  assert.equal(cache.scan(), 0, "not before the last ones are gone");
  cache.unmapPurged(1);
  assert.deepEqual([...grants.handles.values()].sort(), [10, 9].sort());
  cache.clear();
  assert.equal(grants.handles.size, 0);
});

test("whatever is mapped, given back, scanned and purged, no handle is lost", () => {
  const step = fc.oneof(
    fc.record({ use: fc.array(fc.integer({ min: 8, max: 30 }), { minLength: 1, maxLength: 11 }) }),
    fc.record({ pass: fc.nat(100) }),
    fc.constant("release" as const),
    fc.constant("scan" as const),
    fc.constant("unmap" as const),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.nat(8), (steps, capacity) => {
      const grants = new FakeGrants();
      const cache = cacheOf(grants, capacity, { unusedMilliseconds: 150 });
      const held: RequestPages[] = [];
      for (const each of steps) {
        if (each === "release") {
          const pages = held.shift();
          if (pages !== undefined) cache.unmap(pages);
        } else if (each === "scan") cache.scan();
        else if (each === "unmap") cache.unmapPurged(2);
        else if ("pass" in each) cache.now += each.pass;
        else {
          const pages = new RequestPages(11);
          cache.map(Uint32Array.from(each.use), each.use.length, true, pages);
          for (let i = 0; i < pages.count; i++) assert.equal(pages.starts[i], each.use[i]! * 4096);
          held.push(pages);
        }
        assert.equal(cache.mapped, grants.handles.size);
        assert.ok(cache.kept <= capacity);
      }
      for (const pages of held) cache.unmap(pages);
      cache.clear();
      assert.equal(grants.handles.size, 0);
    }),
  );
});

test("room for a request is what others left of the buffer pages, and one always has room", () => {
  const cache = cacheOf(new FakeGrants(), 0, { bufferPages: 4 });
  const pages = new RequestPages(11);
  assert.equal(cache.hasRoom(11), true);
  assert.equal(cache.map(references(8, 9, 10), 3, true, pages), true);
  assert.deepEqual([cache.hasRoom(1), cache.hasRoom(2)], [true, false]);
  cache.unmap(pages);
  assert.equal(cache.hasRoom(11), true);
});
