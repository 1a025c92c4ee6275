/** The order that flushes and barriers keep, against a plain model of it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Drain, type DrainMember } from "../../src/block/backend/drain.ts";
import { PendingRequest } from "../../src/block/backend/pending-request.ts";
import type { RequestOwner } from "../../src/store/block-store.ts";
import { shows } from "../../src/testing/index.ts";

class Ring implements DrainMember, RequestOwner {
  readonly running: PendingRequest[];

  constructor(running: PendingRequest[]) {
    this.running = running;
  }
  drained(slot: PendingRequest): void {
    this.running.push(slot);
  }
  resume(): void {}
  completed(): void {}
}

test(
  "whatever comes and ends when: flushes follow earlier changes, barriers are alone, all end",
  shows(["4.3.5"], () => {
    const kinds = fc.constantFrom("read", "write", "flush", "flush+write", "barrier", "end");
    const steps = fc.array(fc.tuple(kinds, fc.nat(100)), { maxLength: 80 });
    fc.assert(
      fc.property(steps, (list) => {
        const drain = new Drain();
        /** Given to the store and not ended. */
        const running: PendingRequest[] = [];
        const rings = [new Ring(running), new Ring(running)];
        for (const ring of rings) drain.join(ring);
        /** What a flush or barrier must not run beside, by its slot. */
        const before = new Map<PendingRequest, Set<PendingRequest>>();
        const alive = new Set<PendingRequest>();
        let barrier: PendingRequest | undefined;
        const check = () => {
          for (const slot of running) {
            for (const earlier of before.get(slot) ?? []) assert.ok(!alive.has(earlier));
            if (slot === barrier) assert.equal(alive.size, 1);
          }
        };
        const endOne = (pick: number) => {
          const [slot] = running.splice(pick % running.length, 1);
          alive.delete(slot!);
          if (slot === barrier) barrier = undefined;
          drain.end(slot!);
        };
        for (const [kind, pick] of list) {
          if (kind === "end") {
            if (running.length > 0) endOne(pick);
          } else if (!drain.barred) {
            const slot = new PendingRequest(rings[pick % 2]!, 0);
            const changes = kind === "write" || kind === "flush+write";
            const changing = [...alive].filter((each) => each.changes);
            drain.begin(slot, changes);
            alive.add(slot);
            if (kind === "read" || kind === "write") running.push(slot);
            else if (kind === "barrier") {
              barrier = slot;
              drain.bar(slot);
            } else {
              before.set(slot, new Set(changing));
              drain.flush(slot);
            }
          }
          check();
        }
        while (alive.size > 0) {
          assert.ok(running.length > 0, "somebody waits for ever");
          endOne(0);
          check();
        }
        assert.equal(drain.barred, false);
      }),
    );
  }),
);
