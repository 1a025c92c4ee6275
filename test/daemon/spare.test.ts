/** The process that waits for the next guest. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Spare } from "../../src/daemon/spare.ts";
import { TestClock } from "../block/backend-world.ts";

function world() {
  const clock = new TestClock();
  const started: { alive: boolean; leave(): Promise<void> }[] = [];
  const start = () => {
    const process = {
      alive: true,
      async leave() {
        process.alive = false;
      },
    };
    started.push(process);
    return process;
  };
  return { clock, started, spare: new Spare(start(), start, clock) };
}

test("a guest gets the process that waits, and the next is started once that one has had its time", () => {
  const { clock, started, spare } = world();
  assert.equal(spare.take(), started[0]);
  clock.advance(4999);
  assert.equal(started.length, 1);
  clock.advance(1);
  assert.equal(started.length, 2);
  assert.equal(spare.take(), started[1]);
});

test("a guest that comes before another process waits has one of its own, as has one whose process died", () => {
  const { clock, started, spare } = world();
  spare.take();
  assert.equal(spare.take(), started[1]);
  clock.advance(5000);
  started[2]!.alive = false;
  assert.equal(spare.take(), started[3]);
});

test("the process that waits ends with the daemon, and none is started after it", async () => {
  const { clock, started, spare } = world();
  spare.take();
  clock.advance(5000);
  await spare[Symbol.asyncDispose]();
  assert.deepEqual([started[0]!.alive, started[1]!.alive], [true, false]);
  const other = world();
  other.spare.take();
  await other.spare[Symbol.asyncDispose]();
  other.clock.advance(5000);
  assert.equal(other.started.length, 1);
});
