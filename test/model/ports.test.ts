/**
 * Event channels of three domains, one of them on another thread or in another process at times, beside a model: every
 * port, error and state is the model's, an event is heard as often as it was sent with nobody looking in between, and
 * what was closed at one end can be bound again at the other.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { DOMID_SELF } from "../../src/xen/domain.ts";
import { revoke } from "../../src/xen/embedded/death.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { Far } from "../support/far-domain.ts";
import { Village } from "../xen/embedded/pair.ts";
import { explore, seconds } from "./budget.ts";
import { PORTS, PortModel } from "./port-model.ts";
import { FarPost, NearPost, type Post } from "./posts.ts";

const DOMAINS = [1, 2, 3] as const;
const FAR = 3;
const limits = { grantEntries: 64, portCount: PORTS, memoryPages: 64 };
/** Turns of the event loop in which an event that nobody expects would come. */
const REST_TURNS = 3;

const domid = fc.constantFrom(...DOMAINS);
const pick = fc.nat(1000);
const peer = fc.oneof(
  { weight: 12, arbitrary: domid },
  { weight: 1, arbitrary: fc.constantFrom(DOMID_SELF, 9, 0x7ff1, -1) },
);
/** Mostly a port that there is, or was. */
const port = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: 1, max: PORTS - 1 }) },
  { weight: 1, arbitrary: fc.constantFrom(0, PORTS, 4096, -1, 1.5) },
);
const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ do: fc.constant("allocate" as const), domid, peer }) },
  { weight: 5, arbitrary: fc.record({ do: fc.constant("bind" as const), domid, peer, port }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("bindOffer" as const), domid, pick }) },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("notify" as const),
      domid,
      pick,
      times: fc.integer({ min: 1, max: 3 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("mask" as const), domid, pick, masked: fc.boolean() }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("close" as const), domid, pick }) },
  fc.record({ do: fc.constant("reset" as const), domid }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
const death = fc.record({ do: fc.constant("die" as const), domid, killed: fc.boolean() });

class World {
  readonly model = new PortModel();
  readonly posts = new Map<number, Post>();
  /** The domain that is elsewhere. */
  readonly #far: number | undefined;

  constructor(far?: number) {
    this.#far = far;
  }

  come(domid: number, post: Post): void {
    this.posts.set(domid, post);
    this.model.come(domid);
  }

  async take(todo: Step): Promise<void> {
    const { model } = this;
    const { domid } = todo;
    const post = this.posts.get(domid)!;
    const ports = model.ports(domid);
    const port = "pick" in todo ? ports[todo.pick % (ports.length || 1)] : undefined;
    switch (todo.do) {
      case "allocate":
        assert.equal(await post.allocate(todo.peer), model.allocate(domid, todo.peer));
        return;
      case "bind": {
        const { peer, port } = todo;
        assert.equal(await post.bind(peer, port), model.bind(domid, peer, port));
        return;
      }
      case "bindOffer": {
        const offers = [...this.posts.keys()].flatMap((other) =>
          model.ports(other).flatMap((port) => {
            const status = model.status(other, port);
            const ours = status.state === "unbound" && status.domid === domid;
            return ours ? [{ other, port }] : [];
          }),
        );
        const offer = offers[todo.pick % (offers.length || 1)];
        if (offer === undefined) return;
        const { other, port } = offer;
        assert.equal(await post.bind(other, port), model.bind(domid, other, port));
        return;
      }
      case "reset":
        await post.reset();
        model.reset(domid);
        return;
    }
    if (port === undefined) return;
    if (todo.do === "notify") {
      await post.notify(port, this.#together(domid, port) ? todo.times : 1);
      model.notify(domid, port);
    } else if (todo.do === "mask") {
      await post.mask(port, todo.masked);
      model.mask(domid, port, todo.masked);
    } else {
      await post.close(port);
      model.close(domid, port);
    }
  }

  /** Whether both ends are on this thread. */
  #together(domid: number, port: number): boolean {
    const status = this.model.status(domid, port);
    const other = status.state === "interdomain" ? status.domid : domid;
    return domid !== this.#far && other !== this.#far;
  }

  /** Everything is heard that is to be, and is as the model says. */
  async check(): Promise<void> {
    this.model.settle();
    for (const [domid, post] of this.posts) {
      const ports = this.model.ports(domid);
      const expected = ports.map((port) => this.model.heard(domid, port));
      let heard = await post.heard(ports);
      // The test's own limit ends what never comes.
      while (heard.some((count, i) => count < expected[i]!)) {
        await turn();
        heard = await post.heard(ports);
      }
      assert.deepEqual(heard, expected, `events of domain ${domid}`);
      const statuses = Array.from({ length: PORTS }, (_, port) => this.model.status(domid, port));
      assert.deepEqual(await post.statuses(PORTS), statuses, `ports of domain ${domid}`);
    }
  }

  /** Back to where it was. */
  async end(): Promise<void> {
    for (let left = REST_TURNS; left > 0; left--) await turn();
    await this.check();
    for (const [domid, post] of this.posts) {
      await post.reset();
      this.model.reset(domid);
    }
    await this.check();
  }
}

const timeout = (seconds(1) + 60) * 1000;

test("three domains of one thread and a model agree on every port and event", {
  timeout,
}, async (context) => {
  const life = fc.array(fc.oneof({ weight: 24, arbitrary: step }, death), {
    minLength: 10,
    maxLength: 100,
    size: "max",
  });
  const lives = await explore(0.1, life, async (steps) => {
    const village = new Village();
    const world = new World();
    const come = (domid: number) =>
      world.come(domid, new NearPost(village.domain(domid, 64, limits)));
    DOMAINS.forEach(come);
    for (const todo of steps) {
      if (todo.do === "die") {
        const { domain } = world.posts.get(todo.domid) as NearPost;
        if (todo.killed) domain.memory.markDead();
        else await domain[Symbol.asyncDispose]();
        world.model.die(todo.domid);
        for (const [other, post] of world.posts) {
          if (other !== todo.domid) revoke(todo.domid, (post as NearPost).domain.memory);
        }
        come(todo.domid);
      } else await world.take(todo);
      village.reactor.settle();
      await world.check();
    }
    await world.end();
    for (const post of world.posts.values()) {
      const { memory } = (post as NearPost).domain;
      assert.ok(memory.ports.every((word) => word === 0));
      assert.ok(memory.pending.every((word) => word === 0));
    }
  });
  context.diagnostic(`${lives} lives`);
});

for (const where of ["worker", "process"] as const) {
  test(`two domains here, one in a ${where}, and a model agree, until that one is killed`, {
    timeout,
  }, async (context) => {
    await using machine = await EmbeddedMachine.create();
    const world = new World(FAR);
    for (const domid of DOMAINS) {
      if (domid === FAR) continue;
      const shared = where === "process";
      world.come(domid, new NearPost(await machine.createDomain(domid, { ...limits, shared })));
    }
    const start = async (): Promise<Far> => {
      const far = await Far.start(await machine.domainTicket(FAR, where, limits));
      world.come(FAR, new FarPost(far));
      return far;
    };
    const take = async (todo: Step): Promise<void> => {
      await world.take(todo);
      await world.check();
    };
    await using first = await start();
    const life = fc.array(step, { minLength: 5, maxLength: 40, size: "max" });
    const lives = await explore(0.05, life, async (steps) => {
      for (const todo of steps) await take(todo);
      await world.end();
    });
    context.diagnostic(`${lives} lives`);
    // Ports to it and from it, some masked, when it is killed.
    for (const domid of [1, 2] as const) {
      await take({ do: "allocate", domid, peer: FAR });
      await take({ do: "bindOffer", domid: FAR, pick: 0 });
      await take({ do: "allocate", domid: FAR, peer: domid });
      await take({ do: "bindOffer", domid, pick: 0 });
      await take({ do: "mask", domid, pick: 0, masked: true });
      await take({ do: "notify", domid: FAR, pick: domid, times: 1 });
    }
    await first.kill();
    await machine.destroyDomain(FAR);
    world.posts.delete(FAR);
    world.model.die(FAR);
    await world.check();
    for (const domid of [1, 2] as const) {
      for (const port of world.model.ports(domid)) {
        assert.equal(world.model.status(domid, port).state, "unbound");
      }
    }
    await using second = await start();
    for (let left = 4; left > 0; left--) await take({ do: "bindOffer", domid: FAR, pick: 0 });
    await world.end();
    await second.call("close");
    await second.ended();
  });
}
