/** Event channels between two domains, as any world behind the hypervisor port has them. */
import assert from "node:assert/strict";
import type { EventChannel } from "../xen/domain.ts";
import { type DomainTest, EVENT_MILLISECONDS, type OpenedDomains } from "./domain-suite-stage.ts";
import { until } from "./vbd-pair.ts";

export function events(suite: DomainTest): void {
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
