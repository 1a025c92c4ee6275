import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { DOMID_SELF, type EventChannel, XenError } from "../../../src/xen/domain.ts";
import type { EmbeddedDomain } from "../../../src/xen/embedded/domain.ts";
import { PORT_COUNT } from "../../../src/xen/embedded/layout.ts";
import { Village } from "./pair.ts";

const FRONT = 5;
const BACK = 0;

interface Pair {
  readonly village: Village;
  readonly front: EmbeddedDomain;
  readonly back: EmbeddedDomain;
}

function pair(): Pair {
  const village = new Village();
  return { village, front: village.domain(FRONT), back: village.domain(BACK) };
}

/** A bound channel whose first event, that of the binding, was delivered. */
function channel({ village, front, back }: Pair): [EventChannel, EventChannel] {
  const offered = front.events.allocateUnbound(BACK);
  const bound = back.events.bindInterdomain(FRONT, offered.port);
  bound.onevent = () => {};
  village.reactor.settle();
  return [offered, bound];
}

const refused = (code: string): ((error: unknown) => boolean) => {
  return (error) => error instanceof XenError && error.code === code;
};

test("notifications before the delivery are one event, with the pending bit cleared", () => {
  const world = pair();
  const [offered, bound] = channel(world);
  let events = 0;
  offered.onevent = () => {
    events++;
    assert.equal(world.front.memory.pending[0], 0);
  };
  for (let i = 0; i < 5; i++) bound.notify();
  assert.equal(events, 0);
  world.village.reactor.settle();
  assert.equal(events, 1);
  assert.equal(world.back.events.counters.sent, 5);
  assert.equal(world.front.events.counters.delivered, 1);
  bound.notify();
  world.village.reactor.settle();
  assert.equal(events, 2);
});

test("an event is delivered without anyone settling, at the end of the turn", async () => {
  const [offered, bound] = channel(pair());
  const { promise, resolve } = Promise.withResolvers<void>();
  offered.onevent = resolve;
  bound.notify();
  await promise;
});

test("a binding begins with one event for who binds, as in Xen", () => {
  const world = pair();
  const offered = world.front.events.allocateUnbound(BACK);
  const bound = world.back.events.bindInterdomain(FRONT, offered.port);
  let events = 0;
  world.village.reactor.settle();
  bound.onevent = () => events++;
  world.village.reactor.settle();
  assert.equal(events, 1);
});

test("a masked event waits for unmask", () => {
  const world = pair();
  const [offered, bound] = channel(world);
  let events = 0;
  offered.onevent = () => events++;
  offered.mask();
  bound.notify();
  world.village.reactor.settle();
  assert.equal(events, 0);
  offered.unmask();
  assert.equal(events, 0);
  world.village.reactor.settle();
  assert.equal(events, 1);
  offered.mask();
  offered.unmask();
  world.village.reactor.settle();
  assert.equal(events, 1);
});

test("only the port that was offered to us can be bound, and once", () => {
  const { village, front, back } = pair();
  const stranger = village.domain(7);
  const offered = front.events.allocateUnbound(BACK);
  const { port } = offered;
  assert.throws(() => stranger.events.bindInterdomain(FRONT, port), refused("EINVAL"));
  back.events.bindInterdomain(FRONT, port);
  for (const wrong of [port, port + 1, 0, -1, 1.5, Number.NaN, PORT_COUNT, 2 ** 40]) {
    assert.throws(() => back.events.bindInterdomain(FRONT, wrong), refused("EINVAL"));
  }
  assert.throws(() => back.events.bindInterdomain(99, port), refused("ESRCH"));
  assert.throws(() => back.events.allocateUnbound(0x10005), refused("EINVAL"));
});

test("closing an end makes the other unbound again, for a new binding", () => {
  const world = pair();
  const [offered, bound] = channel(world);
  let events = 0;
  offered.onevent = () => events++;
  bound[Symbol.dispose]();
  bound[Symbol.dispose]();
  bound.notify();
  offered.notify();
  world.village.reactor.settle();
  assert.equal(events, 0);
  const again = world.back.events.bindInterdomain(FRONT, offered.port);
  again.notify();
  world.village.reactor.settle();
  assert.equal(events, 1);
  offered[Symbol.dispose]();
  again.notify();
  world.village.reactor.settle();
  assert.equal(events, 1);
  assert.throws(() => world.back.events.bindInterdomain(FRONT, offered.port), refused("EINVAL"));
});

test("notifying a domain that ended does nothing", async () => {
  const world = pair();
  const [offered, bound] = channel(world);
  await world.front[Symbol.asyncDispose]();
  bound.notify();
  offered.notify();
  assert.equal(world.back.events.counters.sent, 0);
  bound[Symbol.dispose]();
});

test("ports are bounded, and those that were closed are used again", () => {
  const { front } = pair();
  const channels: EventChannel[] = [];
  for (let i = 1; i < PORT_COUNT; i++) channels.push(front.events.allocateUnbound(BACK));
  assert.throws(() => front.events.allocateUnbound(BACK), refused("ENOSPC"));
  channels[100]?.[Symbol.dispose]();
  assert.equal(front.events.allocateUnbound(BACK).port, channels[100]?.port);
});

test("the lowest free port is taken, as many as the domain may have", () => {
  const village = new Village();
  const front = village.domain(FRONT, 64, { grantEntries: 64, portCount: 4 });
  const back = village.domain(BACK);
  const [first, second, third] = [1, 2, 3].map(() => front.events.allocateUnbound(BACK));
  assert.throws(() => front.events.allocateUnbound(BACK), refused("ENOSPC"));
  const offered = back.events.allocateUnbound(FRONT);
  assert.throws(() => front.events.bindInterdomain(BACK, offered.port), refused("ENOSPC"));
  assert.deepEqual(back.events.status(offered.port), { state: "unbound", domid: FRONT });
  third?.[Symbol.dispose]();
  second?.[Symbol.dispose]();
  assert.equal(front.events.bindInterdomain(BACK, offered.port).port, second?.port);
  assert.equal(first?.port, 1);
  assert.throws(() => back.events.bindInterdomain(FRONT, 4), refused("EINVAL"));
});

test("the status of a port follows its life, and reset closes every port", () => {
  const world = pair();
  const { front, back } = world;
  const offered = front.events.allocateUnbound(BACK);
  const { port } = offered;
  assert.deepEqual(front.events.status(port), { state: "unbound", domid: BACK });
  const bound = back.events.bindInterdomain(FRONT, port);
  assert.deepEqual(front.events.status(port), {
    state: "interdomain",
    domid: BACK,
    port: bound.port,
  });
  back.events.allocateUnbound(FRONT);
  back.events.reset();
  assert.deepEqual(front.events.status(port), { state: "unbound", domid: BACK });
  for (const each of [0, 1, 2]) assert.deepEqual(back.events.status(each), { state: "closed" });
  assert.equal(back.events.bindInterdomain(FRONT, port).port, 1);
  for (const wrong of [-1, 0.5, PORT_COUNT, Number.NaN]) {
    assert.throws(() => front.events.status(wrong), refused("EINVAL"));
  }
});

test("a domain binds a port that it offers itself, by DOMID_SELF or by number", () => {
  const { village, front } = pair();
  for (const name of [DOMID_SELF, FRONT]) {
    const offered = front.events.allocateUnbound(name);
    const bound = front.events.bindInterdomain(name, offered.port);
    let events = 0;
    offered.onevent = () => events++;
    bound.notify();
    village.reactor.settle();
    assert.equal(events, 1);
    bound[Symbol.dispose]();
    assert.deepEqual(front.events.status(offered.port), { state: "unbound", domid: FRONT });
    offered[Symbol.dispose]();
  }
});

test("two domains that answer each other for ever leave timers their turn", async () => {
  const world = pair();
  const [offered, bound] = channel(world);
  using _end = bound;
  let rallies = 0;
  offered.onevent = () => {
    rallies++;
    offered.notify();
  };
  bound.onevent = () => bound.notify();
  offered.notify();
  // It ends: a timer had its turn, again and again, and so had they.
  while (rallies < 100) await new Promise((resolve) => setTimeout(resolve, 1));
});

test("garbage in port and event words neither throws nor reaches a handler that is not due", () => {
  const words = fc.array(fc.nat(0xffffffff), { minLength: 8, maxLength: 8 });
  fc.assert(
    fc.property(words, words, words, (ports, pending, mask) => {
      const world = pair();
      const [offered, bound] = channel(world);
      const calls = new Map<EventChannel, number>();
      for (const each of [offered, bound]) {
        each.onevent = () => calls.set(each, (calls.get(each) ?? 0) + 1);
      }
      world.front.memory.ports.set(ports);
      world.back.memory.ports.set(ports.toReversed());
      world.front.memory.pending.set(pending);
      world.front.memory.mask.set(mask);
      for (let i = 0; i < 3; i++) {
        offered.notify();
        bound.notify();
        world.front.lookAgain();
        world.village.reactor.settle();
      }
      for (const count of calls.values()) assert.ok(count <= 4);
      offered[Symbol.dispose]();
      bound[Symbol.dispose]();
    }),
    { numRuns: 200 },
  );
});
