/**
 * Three domains that grant, end, map, unmap, copy, die, come again, and write what they like into their own grant
 * tables, beside a model: every status is the model's, the marks of an entry are its mappings, no page is used again
 * while somebody maps it, and at the end everything is where it was.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  DOMID_SELF,
  type GrantCopy,
  type GrantCopyEnd,
  GrantMapBatch,
  GrantStatus,
  type OwnPages,
  PAGE_SIZE,
} from "../../src/xen/domain.ts";
import { revoke } from "../../src/xen/embedded/death.ts";
import { GTF_permit_access } from "../../src/xen/embedded/layout.ts";
import { Village } from "../xen/embedded/pair.ts";
import { explore, seconds } from "./budget.ts";
import { ENTRIES, House, MAPTRACK, type Mapping, PAGES, type Pin } from "./grant-model.ts";

const domid = fc.integer({ min: 1, max: 3 });
const pick = fc.nat(1000);
/** Mostly an entry that is granted to who asks, or to anybody, chosen when it is needed; else any number of anybody. */
const target = fc.oneof(
  { weight: 8, arbitrary: fc.record({ pick }) },
  { weight: 1, arbitrary: fc.record({ peer: domid, pick }) },
  {
    weight: 1,
    arbitrary: fc.record({
      peer: fc.oneof(domid, fc.constantFrom(9, DOMID_SELF, 0xffff)),
      raw: fc.constantFrom(0, 7, 8, 23, 24, 0xffffffff),
    }),
  },
);
const offset = fc.constantFrom(0, 1, 512, 4095, 4096);
const copyEnd = fc.oneof(
  { weight: 4, arbitrary: fc.record({ target, self: fc.boolean(), offset }) },
  { weight: 1, arbitrary: fc.record({ own: fc.constantFrom(0, 16, 4096) }) },
);
const readOnly = fc.boolean();

const step = fc.oneof(
  fc.record({ do: fc.constant("allocate" as const), domid, count: fc.integer({ min: 1, max: 4 }) }),
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("grant" as const),
      domid,
      pick,
      whole: fc.boolean(),
      to: domid,
      readOnly,
      wanted: fc.oneof(fc.constant(0), fc.integer({ min: 8, max: ENTRIES })),
    }),
  },
  fc.record({ do: fc.constant("end" as const), domid, pick }),
  fc.record({ do: fc.constant("free" as const), domid, pick }),
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("map" as const), domid, target, readOnly }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("unmap" as const), domid, pick }) },
  fc.record({ do: fc.constant("unmapNothing" as const), domid, handle: fc.nat(2 * MAPTRACK) }),
  fc.record({
    do: fc.constant("mapSideBySide" as const),
    domid,
    target,
    run: fc.boolean(),
    more: fc.array(pick, { maxLength: 2 }),
    readOnly,
  }),
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("copy" as const),
      domid,
      source: copyEnd,
      destination: copyEnd,
      length: fc.constantFrom(0, 1, 16, 512, 4096, 4097, -1),
    }),
  },
  fc.record({
    do: fc.constant("spoil" as const),
    domid,
    /** An entry that is granted, of which the frame alone is changed; or any, and all of it. */
    granted: fc.boolean(),
    reference: fc.nat(ENTRIES - 1),
    flags: fc.oneof(fc.constantFrom(0, 1, 5, 9, 25, 257), fc.nat(0xffff)),
    to: domid,
    frame: fc.nat(PAGES + 2),
  }),
  fc.record({ do: fc.constant("await" as const), domid, count: fc.integer({ min: 1, max: 16 }) }),
  fc.record({ do: fc.constant("die" as const), domid, killed: fc.boolean() }),
);
const ZEROES = Buffer.alloc(PAGE_SIZE);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
type Target = typeof target extends fc.Arbitrary<infer T> ? T : never;
type CopyEnd = typeof copyEnd extends fc.Arbitrary<infer T> ? T : never;

interface GrantShape {
  readonly to: number;
  readonly readOnly: boolean;
  /** A reference, or 0 for any. */
  readonly wanted: number;
}

/** The three domains, and those that were there before them. */
class World {
  readonly village = new Village();
  readonly houses = new Map<number, House>();
  readonly all: House[] = [];

  constructor() {
    for (const id of [1, 2, 3]) this.#settle(id);
  }

  #settle(id: number): void {
    const limits = { grantEntries: ENTRIES, maptrackEntries: MAPTRACK };
    const house = new House(this.village.domain(id, PAGES, limits));
    this.houses.set(id, house);
    this.all.push(house);
    // Something to begin with, so that most steps find what they look for.
    for (const [to, readOnly] of [
      [(id % 3) + 1, false],
      [((id + 1) % 3) + 1, true],
    ] as const) {
      this.#allocate(house, 3);
      const run = house.runs.at(-1)!;
      for (let i = 0; i < 3; i++) this.#grant(house, run, i, { to, readOnly, wanted: 0 });
    }
  }

  async take(todo: Step): Promise<void> {
    const house = this.houses.get(todo.domid)!;
    switch (todo.do) {
      case "allocate":
        return this.#allocate(house, todo.count);
      case "grant": {
        const bare = house.pages().filter(({ reference }) => reference === 0);
        const page = chosen(bare, todo.pick);
        for (const { run, index } of bare) {
          if (run !== page?.run || (!todo.whole && index !== page.index)) continue;
          this.#grant(house, run, index, todo.whole ? { ...todo, wanted: 0 } : todo);
        }
        return;
      }
      case "end": {
        const page = chosen(house.pages(), todo.pick);
        if (page === undefined) return;
        const { run, index, reference } = page;
        const ends = reference === 0 || !house.inUse(reference);
        assert.equal(run.endAccess(index), ends);
        if (ends && reference !== 0) house.free.add(reference);
        return;
      }
      case "free": {
        const run = chosen(house.runs, todo.pick);
        if (run !== undefined) this.#free(house, run);
        return;
      }
      case "map":
        return this.#map(house, todo);
      case "unmap": {
        const mapping = chosen([...house.mappings], todo.pick);
        if (mapping !== undefined) this.#unmap(house, mapping);
        return;
      }
      case "unmapNothing": {
        for (const { handle, run } of house.mappings) {
          if (handle === todo.handle || run !== undefined) return;
        }
        assert.equal(house.domain.grants.unmap(todo.handle), GrantStatus.badHandle);
        return;
      }
      case "mapSideBySide":
        return this.#mapSideBySide(house, todo);
      case "copy":
        return this.#copy(house, todo);
      case "spoil": {
        const { grantWords } = house.domain.memory;
        const granted = house.pages().filter((page) => page.reference !== 0);
        const found = todo.granted ? chosen(granted, todo.reference) : undefined;
        const reference = found?.reference ?? todo.reference;
        house.spoilt.add(reference);
        house.spoiltFrames.add(todo.frame);
        grantWords[reference * 2 + 1] = todo.frame;
        if (found === undefined) grantWords[reference * 2] = (todo.to << 16) | todo.flags;
        return;
      }
      case "await": {
        const waiter = {
          count: todo.count,
          called: false,
          end: house.domain.grants.whenFree(todo.count, () => {
            assert.equal(waiter.called, false, "called back twice");
            waiter.called = true;
          }),
        };
        house.waiters.push(waiter);
        return;
      }
      case "die":
        return await this.#die(house, todo.killed);
    }
  }

  #allocate(house: House, count: number): void {
    const untouchable = house.untouchable(this.#pins);
    const run = house.domain.grants.allocate(count);
    if (run === undefined) return;
    for (let i = 0; i < count; i++) {
      const frame: number = run.start / PAGE_SIZE + i;
      assert.ok(!untouchable.has(frame), `page ${frame} is used again`);
      const bytes = house.bytes(frame);
      const named = house.spoiltFrames.has(frame);
      assert.ok(named || ZEROES.equals(bytes), "a page that is not zeroed");
      bytes.fill(frame + house.id);
    }
    house.runs.push(run);
  }

  #grant(house: House, run: OwnPages, index: number, how: GrantShape): void {
    const { to, readOnly, wanted } = how;
    const granted = run.grant(index, to, readOnly, wanted);
    assert.equal(granted, wanted === 0 ? house.free.size > 0 : house.free.has(wanted));
    const reference = run.references[index]!;
    if (granted) assert.ok(house.free.delete(reference), "an entry that was not free");
    if (granted && wanted !== 0) assert.equal(reference, wanted);
  }

  #free(house: House, run: OwnPages): void {
    for (const [i, reference] of run.references.entries()) {
      if (reference === 0) continue;
      if (house.inUse(reference)) house.quarantined.add(run.start / PAGE_SIZE + i);
      else house.free.add(reference);
    }
    house.runs.splice(house.runs.indexOf(run), 1);
    run[Symbol.dispose]();
    run[Symbol.dispose]();
  }

  /** The granter's number, or whatever was meant to be one, and the reference. */
  #aim(house: House, target: Target): { peer: number; reference: number } {
    if ("raw" in target) return { peer: target.peer, reference: target.raw };
    const granted = [...this.houses.values()].flatMap((granter) =>
      granter.pages().flatMap(({ reference }) => {
        const ours = granter.word(reference) >>> 16 === house.id;
        const meant = "peer" in target ? granter.id === target.peer : ours;
        return reference !== 0 && meant ? [{ peer: granter.id, reference }] : [];
      }),
    );
    return chosen(granted, target.pick) ?? { peer: house.id, reference: 8 };
  }

  /** Domains are mapped from by their number alone. */
  #map(house: House, todo: Step & { do: "map" }): void {
    const { peer, reference } = this.#aim(house, todo.target);
    const granter = this.houses.get(peer);
    const { readOnly } = todo;
    const batch = new GrantMapBatch(1);
    batch.count = 1;
    batch.references[0] = reference;
    batch.readOnly[0] = readOnly ? 1 : 0;
    const expected = this.#expected(house, granter, reference, readOnly, []);
    const before = granter?.word(reference) ?? 0;
    house.domain.grants.map(peer, batch);
    if (typeof expected === "number") {
      assert.equal(batch.statuses[0], expected);
      const added = (granter?.word(reference) ?? 0) & ~before;
      assert.equal(added, 0, "a refusal that leaves its mark");
      return;
    }
    assert.equal(batch.statuses[0], GrantStatus.okay);
    assert.equal(batch.starts[0], expected.frame * PAGE_SIZE);
    assert.equal(batch.regions[0]?.bytes, granter!.domain.memory.region.bytes);
    const handle = batch.handles[0]!;
    for (const other of house.mappings) assert.notEqual(other.handle, handle);
    house.mappings.add({ pins: [expected], handle });
  }

  /** `more` are pins of the same operation. */
  #expected(
    house: House,
    granter: House | undefined,
    reference: number,
    readOnly: boolean,
    more: readonly Pin[],
  ): Pin | GrantStatus {
    const full = house.mapped + more.length >= MAPTRACK;
    if (granter !== undefined && full) return GrantStatus.noSpace;
    return house.pin(granter, reference, readOnly, [...house.held, ...more], true);
  }

  #mapSideBySide(house: House, todo: Step & { do: "mapSideBySide" }): void {
    const { peer, reference } = this.#aim(house, todo.target);
    const granter = this.houses.get(peer);
    const granted = (granter?.pages() ?? []).filter((page) => page.reference !== 0);
    const first = granted.find((page) => page.reference === reference);
    const others = todo.run
      ? granted.filter(({ run, index }) => run === first?.run && index > first.index)
      : todo.more.flatMap((pick) => chosen(granted, pick) ?? []);
    const references = [reference, ...others.map((page) => page.reference)];
    const pins: Pin[] = [];
    let failure: GrantStatus | undefined;
    for (const reference of references) {
      const pin = this.#expected(house, granter, reference, todo.readOnly, pins);
      if (typeof pin !== "number") pins.push(pin);
      else failure ??= pin;
    }
    const apart = pins.some(({ frame }, i) => frame !== pins[0]!.frame + i);
    const run = house.domain.grants.mapContiguous(peer, references, todo.readOnly);
    if (failure !== undefined || apart) {
      assert.equal(run, failure ?? GrantStatus.badVirtualAddress);
      return;
    }
    assert.ok(typeof run === "object", `it is refused with ${run}`);
    assert.equal(run.bytes.length, references.length * PAGE_SIZE);
    assert.equal(run.bytes.byteOffset, granter!.bytes(pins[0]!.frame).byteOffset);
    house.mappings.add({ pins, run });
  }

  #unmap(house: House, { pins, handle, run }: Mapping): void {
    house.mappings.forEach((mapping) => {
      if (mapping.pins === pins) house.mappings.delete(mapping);
    });
    run?.[Symbol.dispose]();
    run?.[Symbol.dispose]();
    if (handle !== undefined) assert.equal(house.domain.grants.unmap(handle), GrantStatus.okay);
  }

  #copy(house: House, { source, destination, length }: Step & { do: "copy" }): void {
    const from = this.#copyEnd(house, source);
    const to = this.#copyEnd(house, destination);
    const operation: GrantCopy = {
      source: from.end,
      destination: to.end,
      length,
      status: GrantStatus.tryAgain,
    };
    const [expected, read, written] = this.#copied(house, from, to, length);
    const wanted = read === undefined ? undefined : new Uint8Array(read);
    house.domain.grants.copy([operation]);
    assert.equal(operation.status, expected);
    if (wanted !== undefined) assert.deepEqual(new Uint8Array(written!), wanted);
  }

  #copyEnd(house: House, end: CopyEnd) {
    if ("own" in end) return { end: new Uint8Array(end.own).fill(end.own), granter: undefined };
    const { peer, reference } = this.#aim(house, end.target);
    const granter = this.houses.get(peer === DOMID_SELF ? house.id : peer);
    const named = peer === house.id && end.self ? DOMID_SELF : peer;
    return { end: { peer: named, reference, offset: end.offset }, granter };
  }

  /** The status, and the bytes that are read and written where it is okay. */
  #copied(
    house: House,
    from: { end: GrantCopyEnd; granter: House | undefined },
    to: { end: GrantCopyEnd; granter: House | undefined },
    length: number,
  ): [GrantStatus, Uint8Array?, Uint8Array?] {
    const ends = [from, to];
    const missing = ends.some(({ end, granter }) => "peer" in end && granter === undefined);
    if (missing) return [GrantStatus.badDomain];
    const held = house.held;
    const pins: (Pin | undefined)[] = [];
    for (const [i, { end, granter }] of ends.entries()) {
      if (!("peer" in end)) {
        pins.push(undefined);
        continue;
      }
      const pin = house.pin(granter, end.reference, i === 0, held, false);
      if (typeof pin === "number") return [pin];
      held.push(pin);
      pins.push(pin);
    }
    const bytes = ends.map(({ end }, i) => {
      if (!("peer" in end)) return length <= end.length ? end.subarray(0, length) : undefined;
      const fits = end.offset + length <= PAGE_SIZE;
      return fits ? pins[i]!.granter.bytes(pins[i]!.frame, end.offset, length) : undefined;
    });
    const [read, written] = bytes;
    if (length < 0 || read === undefined || written === undefined) {
      return [GrantStatus.badCopyArgument];
    }
    return [GrantStatus.okay, read, written];
  }

  /** Its mappings end with it, those of its own pages do not; another comes under the same number. */
  async #die(house: House, killed: boolean): Promise<void> {
    house.alive = false;
    if (killed) {
      house.domain.memory.markDead();
      // What it had of a dead domain nobody takes back.
      for (const pin of house.held) if (!pin.granter.alive) pin.granter.spoilt.add(pin.reference);
    } else await house.domain[Symbol.asyncDispose]();
    house.mappings.clear();
    house.waiters = [];
    for (const other of this.houses.values()) {
      if (other !== house) revoke(house.id, other.domain.memory);
    }
    this.#settle(house.id);
  }

  get #pins(): Pin[] {
    return this.all.flatMap(({ held }) => held);
  }

  check(): void {
    this.village.reactor.settle();
    const pins = this.#pins;
    for (const house of this.all) house.check(pins);
    for (const { waiters, free } of this.all) {
      for (const { count, called } of waiters) if (!called) assert.ok(count > free.size);
    }
    for (const house of this.all) house.waiters = house.waiters.filter(({ called }) => !called);
  }

  /** Everything is given back: nothing but what was quarantined is missing. */
  async end(): Promise<void> {
    for (const house of this.all) {
      for (const mapping of house.mappings) this.#unmap(house, mapping);
      for (const { end } of house.waiters.splice(0)) end[Symbol.dispose]();
    }
    for (const house of this.all) {
      // Who wrote into a table of its own puts it in order again.
      const { grantWords } = house.domain.memory;
      for (const reference of house.spoilt) {
        const at = house.pages().find((page) => page.reference === reference);
        grantWords[reference * 2] = at === undefined ? 0 : (1 << 16) | GTF_permit_access;
      }
      house.spoilt.clear();
      if (house.alive) {
        for (const run of house.runs.slice()) this.#free(house, run);
      }
    }
    for (const house of this.houses.values()) {
      house.check([]);
      assert.deepEqual([house.pages().length, house.mapped], [0, 0]);
    }
    for (const { domain, runs } of this.all) {
      await domain[Symbol.asyncDispose]();
      for (const run of runs) run[Symbol.dispose]();
    }
    assert.equal(this.village.unmapped.length, this.all.length, "memory that somebody holds");
  }
}

function chosen<T>(list: readonly T[], pick: number): T | undefined {
  return list[pick % (list.length || 1)];
}

test("three domains and a model agree on every grant, whatever they do to each other", {
  timeout: (seconds(1) + 60) * 1000,
}, async (context) => {
  const steps = fc.array(step, { minLength: 20, maxLength: 150, size: "max" });
  const lives = await explore(0.2, steps, async (todo) => {
    const world = new World();
    for (const each of todo) {
      await world.take(each);
      world.check();
    }
    await world.end();
  });
  context.diagnostic(`${lives} lives`);
});
