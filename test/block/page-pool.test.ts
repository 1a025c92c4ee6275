import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PagePool } from "../../src/block/frontend/page-pool.ts";
import type { Clock } from "../../src/util/clock.ts";
import { FakeGrants, fakeDomain } from "./doubles.ts";

/** Time that passes when a test says so. */
class ManualClock implements Clock {
  readonly timers: Set<() => void> = new Set();
  now(): number {
    return 0;
  }
  after(_milliseconds: number, callback: () => void): Disposable {
    this.timers.add(callback);
    return { [Symbol.dispose]: () => void this.timers.delete(callback) };
  }
  /** Every timer runs out. */
  pass(): void {
    const due = [...this.timers];
    this.timers.clear();
    for (const callback of due) callback();
  }
}
const clock = new ManualClock();

function pool(grants: FakeGrants, persistent: boolean, pages = 64): PagePool {
  const made = PagePool.create({
    domain: fakeDomain(grants),
    peer: 0,
    clock,
    wanted: pages,
    minimum: 12,
    persistent,
  });
  assert.ok(made !== undefined);
  return made;
}

test("a run of pages lies in one piece while there is one", () => {
  const made = pool(new FakeGrants(), true);
  const pages = new Uint32Array(32);
  assert.equal(made.take(32, pages), true);
  assert.deepEqual(
    [...pages],
    [...pages].map((_, i) => pages[0]! + i),
  );
});

test("a pool that was scattered gives long runs again once its pages are back", () => {
  const made = pool(new FakeGrants(), true);
  const singles = Array.from({ length: 64 }, () => new Uint32Array(1));
  for (const single of singles) assert.equal(made.take(1, single), true);
  assert.equal(made.available, 0);
  for (const single of singles) made.give(single, 1);
  const run = new Uint32Array(32);
  assert.equal(made.take(32, run), true);
  assert.deepEqual(
    [...run],
    [...run].map((_, i) => run[0]! + i),
  );
});

test("a page that the backend still maps is never lent again", () => {
  const grants = new FakeGrants();
  const made = pool(grants, false);
  const pages = new Uint32Array(1);
  assert.equal(made.take(1, pages), true);
  const page = pages[0]!;
  assert.ok(made.reference(page, true) >= 8);
  grants.held.add(page);
  made.give(pages, 1);
  assert.equal(made.quarantined, 1);
  assert.equal(made.available, 63);
  const all = new Uint32Array(63);
  assert.equal(made.take(63, all), true);
  assert.equal(all.includes(page), false);
});

test("persistent pages stay granted, others are granted for one request", () => {
  for (const persistent of [true, false]) {
    const grants = new FakeGrants();
    const made = pool(grants, persistent);
    const pages = new Uint32Array(1);
    made.take(1, pages);
    const first = made.reference(pages[0]!, false);
    made.give(pages, 1);
    made.take(1, pages);
    assert.equal(made.reference(pages[0]!, false) === first, persistent);
  }
});

test("a shortage of grants is a zero reference", () => {
  const grants = new FakeGrants();
  grants.entries = 0;
  const made = pool(grants, true);
  const pages = new Uint32Array(1);
  made.take(1, pages);
  assert.equal(made.reference(pages[0]!, false), 0);
});

test("no page is lent twice and none is lost, whatever is taken and given", () => {
  const step = fc.oneof(
    fc.record({ take: fc.integer({ min: 1, max: 33 }) }),
    fc.record({ give: fc.nat(50) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const made = pool(new FakeGrants(), true);
      const lent: Uint32Array[] = [];
      const out = new Set<number>();
      for (const action of steps) {
        if ("take" in action) {
          const pages = new Uint32Array(action.take);
          const enough = made.available >= action.take;
          assert.equal(made.take(action.take, pages), enough);
          if (!enough) continue;
          for (const page of pages) {
            assert.ok(page < 64 && !out.has(page), `page ${page}`);
            out.add(page);
          }
          lent.push(pages);
        } else if (lent.length > 0) {
          const [pages] = lent.splice(action.give % lent.length, 1);
          made.give(pages!, pages!.length);
          for (const page of pages!) out.delete(page);
        }
        assert.equal(made.available, 64 - out.size);
      }
    }),
  );
});
