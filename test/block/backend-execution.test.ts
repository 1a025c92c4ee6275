/** How a backend has its store carry out what the ring brought. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Reactor } from "../../src/io/reactor.ts";
import { type BlockRequest, Operation } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { emulate } from "../../src/store/emulate.ts";
import { openStore } from "../../src/store/registry.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import { backendWorld } from "./backend-world.ts";
import { World } from "./frontend-world.ts";

const memory = { driver: "memory", parameters: { size: "1M" }, filters: [] };
/** Of a ring of one page. */
const RING_SLOTS = 32;

/** A memory disk that notes what it was asked. */
async function noting(asked: string[], reactor: Reactor) {
  const store = await openStore(memory, { reactor });
  const submit = store.submit.bind(store);
  store.submit = (request: BlockRequest) => {
    const pieces = request.segments?.count ?? 0;
    asked.push(`${request.operation === Operation.read ? "read" : "other"} in ${pieces}`);
    submit(request);
  };
  return store;
}

test(
  "pages that lie side by side are one piece of memory for the store",
  shows(["4.7.7"], async () => {
    const asked: string[] = [];
    await using at = await backendWorld({ store: (reactor) => noting(asked, reactor) });
    await at.frontend.connect(0);
    assert.equal(
      await at.frontend.status(at.frontend.transfer(BLKIF_OP_READ, 0, 11)),
      BLKIF_RSP_OKAY,
    );
    const apart = at.frontend.transfer(BLKIF_OP_READ, 0, 3);
    apart.references[1] = at.frontend.data.references[9]!;
    assert.equal(await at.frontend.status(apart), BLKIF_RSP_OKAY);
    assert.deepEqual(asked, ["read in 1", "read in 3"]);
  }),
);

test("what a frontend sends as soon as it is told of an answer is taken without an event", async () => {
  await using at = await backendWorld();
  const { frontend, dom0 } = at;
  const asked: boolean[] = [];
  const bind = dom0.events.bindInterdomain.bind(dom0.events);
  dom0.events.bindInterdomain = (peer, port) => {
    const channel = bind(peer, port);
    const notify = channel.notify.bind(channel);
    channel.notify = () => {
      notify();
      if (asked.length > 0) return;
      // Where both share a processor, the frontend may run before the call that notifies it returns.
      frontend.ring.push(frontend.transfer(BLKIF_OP_READ, 0, 1, 1));
      asked.push(frontend.ring.publish());
    };
    return channel;
  };
  await frontend.connect(0);
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 1, 0));
  for (let i = 0; i < 2; i++) assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
  assert.deepEqual(asked, [false]);
});

test(
  "a full ring is in flight at once, with a request of ours for each slot and no more",
  shows(["4.7.4"], async () => {
    // The disk answers nothing until it has been asked for a whole ring.
    const held: BlockRequest[] = [];
    await using at = await backendWorld({
      store: async (reactor) => {
        const store = await openStore(memory, { reactor });
        const submit = store.submit.bind(store);
        store.submit = (request: BlockRequest) => {
          if (held.push(request) === RING_SLOTS) for (const each of held) submit(each);
        };
        return store;
      },
    });
    const { frontend } = at;
    await frontend.connect(0);
    const slots = frontend.ring.size;
    assert.equal(slots, RING_SLOTS);
    const requests = Array.from({ length: slots }, (_, i) =>
      frontend.transfer(BLKIF_OP_READ, i * 8, 1, i % 32),
    );
    frontend.send(...requests);
    const ids = new Set<number>();
    for (let i = 0; i < slots; i++) ids.add((await frontend.receive()).idLow);
    assert.equal(ids.size, slots);
    assert.equal(at.backend.counters?.outOfRequests, 0);
  }),
);

test(
  "a write that must be durable is a write, and then a flush",
  shows(["4.3.4"], async () => {
    await using at = await World.start({ keys: { "feature-flush-cache": "1" } });
    const { reactor } = at.guest;
    const disk = new Disk(emulate(at.frontend, reactor), reactor);
    await disk.write(0, new Uint8Array(4096), { forceUnitAccess: true });
    assert.deepEqual(
      at.backend.seen.map(({ operation }) => operation),
      [BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE],
    );
  }),
);
