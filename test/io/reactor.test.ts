import assert from "node:assert/strict";
import { test } from "node:test";
import { type Kickable, Reactor } from "../../src/io/reactor.ts";

/** Work that makes itself dirty again, a number of times. */
class Chain implements Kickable {
  kicks = 0;
  left: number;
  readonly #reactor: Reactor;
  constructor(reactor: Reactor, left: number) {
    this.#reactor = reactor;
    this.left = left;
  }
  kick(): void {
    this.kicks++;
    if (--this.left > 0) this.#reactor.dirty(this);
  }
}

const turns = (count: number) =>
  new Promise<void>((resolve) => {
    const next = (left: number) => (left === 0 ? resolve() : setImmediate(next, left - 1));
    next(count);
  });

test("what is dirty is kicked once a round, and nothing recurses", () => {
  const reactor = new Reactor();
  const chains = [new Chain(reactor, 3), new Chain(reactor, 1)];
  for (const chain of chains) reactor.dirty(chain);
  reactor.settle();
  assert.deepEqual(
    chains.map(({ kicks }) => kicks),
    [3, 1],
  );
});

test("a chain without end lets the event loop have its turns, and goes on", async () => {
  const reactor = new Reactor();
  const chain = new Chain(reactor, 1000);
  reactor.dirty(chain);
  reactor.settle();
  assert.ok(chain.kicks < 1000);
  await turns(40);
  assert.equal(chain.kicks, 1000);
});

test("whoever awaits request after request does not keep timers and signals waiting", async () => {
  const reactor = new Reactor();
  let fired = 0;
  const timer = setInterval(() => fired++, 1);
  const began = performance.now();
  while (performance.now() - began < 100) {
    const { promise, resolve } = Promise.withResolvers<void>();
    reactor.dirty({ kick: resolve });
    reactor.soon();
    await promise;
  }
  clearInterval(timer);
  assert.ok(fired > 5, `${fired} ticks in 100 ms`);
});
