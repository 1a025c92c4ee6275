/** Any order of a peer's states and keys, from both sides: nobody crashes, hangs or keeps what is not theirs, and the
 * next honest peer is served. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { BlockBackend, BlockFrontend } from "../../src/block/index.ts";
import { openStore } from "../../src/store/registry.ts";
import {
  RequestRunner,
  ScriptedBackend,
  ScriptedFrontend,
  type VbdPair,
  vbdPair,
} from "../../src/testing/index.ts";
import type { Clock } from "../../src/util/clock.ts";
import { BLKIF_OP_READ, BLKIF_RSP_OKAY } from "../../src/wire/blkif.ts";
import { explore, seconds } from "./budget.ts";
import { openPorts } from "./open-ports.ts";
import { slowDomain } from "./slow-domain.ts";

/** Turns of the event loop between two states: none is the peer that nobody can follow. */
const pause = fc.constantFrom(0, 0, 1, 2, 5, 20);
/** All of them, those that mean something more often. */
const state = fc.oneof(fc.nat(8), fc.constantFrom(1, 3, 5, 6));
const walk = fc.array(fc.record({ state, pause }), { minLength: 1, maxLength: 30 });
const timeout = (seconds(1) + 60) * 1000;
/** Turns of the event loop in which either side comes to rest: time alone says little on a busy machine. */
const REST_TURNS = 25;

/** Time in which nobody waits for a dead peer. */
const hasty: Clock = {
  now: () => performance.now(),
  after(milliseconds, callback) {
    const timer = setTimeout(callback, Math.min(milliseconds, 50));
    return { [Symbol.dispose]: () => clearTimeout(timer) };
  },
};

async function rest(): Promise<void> {
  for (let i = 0; i < REST_TURNS; i++) await sleep(1);
}

/** Turns of the event loop that a slow backend spends on opening its disk. */
const OPENING_TURNS = 40;

const frontendSteps = fc.record({
  walk,
  requests: fc.nat(20),
  removeKeys: fc.boolean(),
  persistent: fc.boolean(),
  /** The step before which it publishes an impossible index; most walks have none so far. */
  spoils: fc.nat(100),
  /** Turns before each operation of the backend on the xenstore. */
  pauses: fc.array(fc.constantFrom(0, 0, 0, 1, 4), { minLength: 1, maxLength: 20 }),
  disk: fc.constantFrom("fast" as const, "slow" as const, "opened late" as const),
  goodbye: fc.constantFrom(
    "closed" as const,
    // These take any Closed of the backend's for the answer, also one from before.
    "closed hastily" as const,
    "closed hastily" as const,
    "removed" as const,
    "dead" as const,
  ),
});
type FrontendSteps = typeof frontendSteps extends fc.Arbitrary<infer T> ? T : never;

function openBackend(pair: VbdPair, { disk, pauses }: FrontendSteps): Promise<BlockBackend> {
  const { backendDomain, paths, reactor } = pair;
  const filters = disk === "slow" ? [{ name: "delay", parameters: { delay: "3ms" } }] : [];
  const opener = async () => {
    for (let i = 0; disk === "opened late" && i < OPENING_TURNS; i++) await turn();
    return await openStore({ driver: "memory", parameters: { size: "1M" }, filters }, { reactor });
  };
  return BlockBackend.open(slowDomain(backendDomain, pauses), paths.backend, opener);
}

test("a backend bears any walk of its frontend's states", { timeout }, async (context) => {
  const lives = await explore(0.2, frontendSteps, async (steps) => {
    const { walk, requests, removeKeys, persistent, spoils, goodbye } = steps;
    await using pair = await vbdPair();
    const { backendDomain, frontendDomain, paths } = pair;
    const ports = openPorts(backendDomain);
    const backend = await openBackend(pair, steps);
    const frontend = new ScriptedFrontend(frontendDomain, paths);
    await frontend.offer(backendDomain.id, { persistent });
    for (const [step, { state, pause }] of walk.entries()) {
      await frontend.become(state);
      if (step === spoils) frontend.publishIndex(100_000);
      if (frontend.ring.free > requests) {
        for (let i = 0; i < requests; i++)
          frontend.send(frontend.transfer(BLKIF_OP_READ, i * 8, 2));
      }
      for (let i = 0; i < pause; i++) await turn();
    }
    if (removeKeys) await frontendDomain.store.remove(`${paths.frontend}/ring-ref`);
    if (goodbye === "removed") await pair.remove();
    else if (goodbye === "dead") await frontendDomain[Symbol.asyncDispose]();
    else {
      await frontend.become(6);
      if (goodbye === "closed") await rest();
      await frontend.backendIs(6);
      await frontend.become(1);
      const next = new ScriptedFrontend(frontendDomain, paths);
      await next.connect(backendDomain.id);
      assert.equal(await next.status(next.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
      await next.close();
      await next[Symbol.asyncDispose]();
      assert.equal(frontend.pagesHeld, 0, "pages of a frontend that has closed");
    }
    await backend[Symbol.asyncDispose]();
    assert.equal(backendDomain.grants.counters.mapped, 0, "pages that the backend maps");
    assert.equal(openPorts(backendDomain), ports, "ports that the backend has");
    await frontend[Symbol.asyncDispose]().catch(() => {});
  });
  context.diagnostic(`${lives} lives`);
});

const backendSteps = fc.record({
  walk,
  connects: fc.boolean(),
  answers: fc.boolean(),
  goodbye: fc.constantFrom("closed" as const, "removed" as const),
});

test("a frontend bears any walk of its backend's states", { timeout }, async (context) => {
  const lives = await explore(0.2, backendSteps, async ({ walk, connects, answers, goodbye }) => {
    await using pair = await vbdPair();
    const { backendDomain, frontendDomain, paths, reactor } = pair;
    const ports = openPorts(frontendDomain);
    using backend = new ScriptedBackend(backendDomain, paths);
    const disk = new Uint8Array(2 ** 20);
    backend.onrequest = (request, queue) => {
      if (answers) backend.answer(request, backend.execute(request, disk), queue);
    };
    const giveUp = new AbortController();
    const connecting = BlockFrontend.connect(frontendDomain, paths.frontend, {
      clock: hasty,
      signal: giveUp.signal,
    });
    connecting.catch(() => {});
    if (connects) await backend.connect(frontendDomain.id, { "feature-persistent": "1" });
    let runner: RequestRunner | undefined;
    connecting.then(
      (frontend) => {
        runner = new RequestRunner(frontend, reactor);
      },
      () => {},
    );
    const ends: Promise<number>[] = [];
    for (const { state, pause } of walk) {
      await backend.become(state);
      if (runner !== undefined) ends.push(runner.run({ operation: "read", length: 8192 }));
      for (let i = 0; i < pause; i++) await turn();
    }
    const kept = backendDomain.grants.counters.mapped;
    backend.detach();
    if (goodbye === "closed") {
      await backend.become(5);
      await backend.become(6);
    } else await pair.remove();
    await Promise.all(ends);
    await rest();
    giveUp.abort();
    const frontend = await connecting.catch(() => undefined);
    await frontend?.[Symbol.asyncDispose]();
    runner?.[Symbol.dispose]();
    const { granted, quarantined } = frontendDomain.grants.counters;
    assert.equal(granted, 0, "pages that the backend may map");
    // A backend may say that it is gone, or nothing for long, and map the ring still: that page is lost, and no other.
    assert.ok(quarantined <= kept, `${quarantined} pages lost, of which the backend kept ${kept}`);
    assert.equal(openPorts(frontendDomain), ports, "ports that the frontend has");
  });
  context.diagnostic(`${lives} lives`);
});
