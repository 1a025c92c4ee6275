/** A backend that copies between the peer's pages and its own: what it tells, maps and leaves, and who takes grants back. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockRequest } from "../../src/store/block-store.ts";
import { ForwardingStore } from "../../src/store/forwarding-store.ts";
import { openStore } from "../../src/store/registry.ts";
import {
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
} from "../../src/wire/blkif.ts";
import { type BackendWorld, backendWorld } from "./backend-world.ts";

const copy = { grants: "copy" } as const;

/** A disk that carries nothing out before it is let. */
class HeldStore extends ForwardingStore {
  readonly #held: BlockRequest[] = [];
  #waits: { readonly count: number; readonly done: () => void } | undefined = undefined;

  override submit(request: BlockRequest): void {
    this.#held.push(request);
    if (this.#held.length === this.#waits?.count) this.#waits.done();
  }

  /** Resolves when so many requests are held. */
  async holds(count: number): Promise<void> {
    if (this.#held.length >= count) return;
    await new Promise<void>((done) => {
      this.#waits = { count, done };
    });
  }

  letGo(): void {
    for (const request of this.#held.splice(0)) this.next.submit(request);
    this.reactor.settle();
  }
}

async function heldWorld(): Promise<BackendWorld & { readonly held: HeldStore }> {
  const made = Promise.withResolvers<HeldStore>();
  const spec = { driver: "memory", parameters: { size: "1M" }, filters: [] };
  const world = await backendWorld({
    limits: copy,
    store: async (reactor) => {
      const store = new HeldStore(await openStore(spec, { reactor }), reactor);
      made.resolve(store);
      return store;
    },
  });
  return Object.assign(world, { held: await made.promise });
}

test("a backend that copies maps nothing but the ring, and does not offer persistent grants", async () => {
  await using at = await backendWorld({ limits: copy });
  const { frontend, dom0 } = at;
  await frontend.connect(0, { persistent: true, pages: 64 });
  assert.equal(await frontend.backendKey("feature-persistent"), "0");
  const { counters } = dom0.grants;
  const before = counters.maps;
  for (let i = 0; i < 64; i++) frontend.page(i).fill(i + 1);
  assert.equal(await frontend.status(frontend.indirect(BLKIF_OP_WRITE, 8, 32)), BLKIF_RSP_OKAY);
  frontend.bytes(0, 64).fill(0xee);
  assert.equal(await frontend.status(frontend.indirect(BLKIF_OP_READ, 8, 32, 32)), BLKIF_RSP_OKAY);
  for (let i = 0; i < 32; i++) {
    assert.ok(
      frontend.page(32 + i).every((byte) => byte === i + 1),
      `page ${i}`,
    );
    assert.ok(
      frontend.page(i).every((byte) => byte === 0xee),
      `page ${i} of the write`,
    );
  }
  assert.deepEqual([counters.maps - before, counters.mapped], [0, 1]);
});

test("a guest that takes its page back before the data come has that request fail, and no other", async () => {
  await using at = await heldWorld();
  const { frontend, backend, held } = at;
  await frontend.connect(0);
  frontend.bytes(0, 2).fill(0xee);
  const kept = frontend.transfer(BLKIF_OP_READ, 0, 1);
  const revoked = frontend.transfer(BLKIF_OP_READ, 0, 1, 1);
  frontend.send(kept, revoked);
  await held.holds(2);
  assert.ok(frontend.data.endAccess(1), "a page that is copied is not mapped meanwhile");
  held.letGo();
  const statuses = new Map<number, number>();
  for (let i = 0; i < 2; i++) {
    const { idLow, status } = await frontend.receive();
    statuses.set(idLow, status);
  }
  assert.equal(statuses.get(kept.idLow), BLKIF_RSP_OKAY);
  assert.equal(statuses.get(revoked.idLow), BLKIF_RSP_ERROR);
  assert.equal(backend.counters?.brokenRules.grant, 1);
  assert.ok(frontend.page(0).every((byte) => byte === 0));
  assert.ok(frontend.page(1).every((byte) => byte === 0xee));
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 1));
  await held.holds(1);
  held.letGo();
  assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
});

test("what is written is what stood there when the request was taken, whatever the guest writes later", async () => {
  await using at = await heldWorld();
  const { frontend, held } = at;
  await frontend.connect(0, { pages: 2 });
  frontend.page(0).fill(1);
  frontend.send(frontend.transfer(BLKIF_OP_WRITE, 0, 1));
  await held.holds(1);
  frontend.page(0).fill(2);
  held.letGo();
  assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 1, 1));
  await held.holds(1);
  held.letGo();
  assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
  assert.ok(frontend.page(1).every((byte) => byte === 1));
});

test("requests that would be copied to more pages than allowed wait for others, and each is answered", async () => {
  await using at = await backendWorld({ limits: { ...copy, maxBufferPages: 16 }, delay: "1ms" });
  const { frontend, backend } = at;
  await frontend.connect(0, { pages: 33 });
  const requests = Array.from({ length: 12 }, (_, i) =>
    frontend.transfer(BLKIF_OP_READ, 0, 11, (i % 3) * 11),
  );
  frontend.send(...requests, frontend.indirect(BLKIF_OP_READ, 0, 32));
  for (let i = 0; i < 13; i++) assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
  assert.ok(backend.counters!.stalls.bufferPages > 0);
});

test("a guest that closes while its requests are carried out leaves nothing copied or mapped", async () => {
  await using at = await heldWorld();
  const { frontend, dom0, held } = at;
  await frontend.connect(0);
  frontend.send(frontend.transfer(BLKIF_OP_READ, 0, 11), frontend.transfer(BLKIF_OP_WRITE, 0, 11));
  await held.holds(2);
  await frontend.become(6);
  held.letGo();
  await frontend.backendIs(6);
  assert.equal(dom0.grants.counters.mapped, 0);
});
