import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  GrantCache,
  type GrantCacheOptions,
  MappedPages,
} from "../../src/block/backend/grant-cache.ts";
import { FakeGrants } from "./doubles.ts";

function cacheOf(
  grants: FakeGrants,
  capacity: number,
  more: Partial<GrantCacheOptions> = {},
): GrantCache {
  return new GrantCache({ grants, peer: 1, capacity, batch: 256, ...more });
}

const references = (...list: number[]) => Uint32Array.from(list);

test("without persistent grants every page is mapped for its request and unmapped after it", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 0);
  const pages = new MappedPages(11);
  assert.equal(cache.map(references(9, 10, 9), 3, true, pages), true);
  assert.equal(grants.handles.size, 3);
  cache.unmap(pages);
  assert.equal(grants.handles.size, 0);
  assert.equal(cache.mapped, 0);
});

test("a persistent grant is mapped once and found again", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 8);
  const pages = new MappedPages(11);
  for (let round = 0; round < 3; round++) {
    assert.equal(cache.map(references(9, 10), 2, round === 1, pages), true);
    cache.unmap(pages);
  }
  assert.equal(grants.maps, 2);
  assert.equal(cache.kept, 2);
  cache.clear();
  assert.equal(grants.handles.size, 0);
});

test("a reference used twice at once is mapped on its own the second time and kept only once", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 8);
  const first = new MappedPages(11);
  const second = new MappedPages(11);
  assert.equal(cache.map(references(9, 9), 2, false, first), true);
  assert.equal(cache.map(references(9), 1, false, second), true);
  assert.equal(grants.handles.size, 3);
  assert.equal(cache.kept, 1);
  cache.unmap(first);
  cache.unmap(second);
  assert.equal(grants.handles.size, 1);
});

test("what does not fit into the cache is mapped for its request only", () => {
  const grants = new FakeGrants();
  const cache = cacheOf(grants, 2);
  const pages = new MappedPages(11);
  assert.equal(cache.map(references(9, 10, 11, 12), 4, false, pages), true);
  assert.equal(cache.overflowed, true);
  cache.unmap(pages);
  assert.equal(grants.handles.size, 2);
});

test("one grant that cannot be mapped leaves nothing of its request mapped", () => {
  const grants = new FakeGrants();
  grants.refused.add(12);
  const cache = cacheOf(grants, 2);
  const pages = new MappedPages(11);
  assert.equal(cache.map(references(9), 1, false, pages), true);
  cache.unmap(pages);
  assert.equal(cache.map(references(9, 10, 12, 13), 4, false, pages), false);
  assert.equal(grants.handles.size, 1, "the kept page alone");
  assert.equal(pages.count, 0);
  assert.equal(cache.map(references(9), 1, false, pages), true, "and it can be used again");
  assert.equal(grants.maps, 3);
  cache.unmap(pages);
});

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
      const held: MappedPages[] = [];
      for (const { references: list, readOnly, hold } of requests) {
        const pages = new MappedPages(11);
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
