import assert from "node:assert/strict";
import { test } from "node:test";
import {
  EventGuard,
  MAX_MASKED_MILLISECONDS,
  TOLERATED_EVENTS,
} from "../../src/xen/event-guard.ts";
import { ManualClock } from "../support/manual-clock.ts";

/** A guard, and the port that it guards. */
class Gate implements Disposable {
  readonly clock = new ManualClock();
  masked = false;
  readonly guard: EventGuard;

  constructor() {
    const channel = {
      sharesThread: true,
      port: 1,
      onevent: undefined,
      notify: () => {},
      mask: () => {
        this.masked = true;
      },
      unmask: () => {
        this.masked = false;
      },
      [Symbol.dispose]: () => {},
    };
    this.guard = new EventGuard(channel, this.clock);
  }

  /** An event, where the port lets it through. */
  event(useful: boolean): boolean {
    if (this.masked) return false;
    this.guard.came();
    this.guard.ended(useful);
    return true;
  }

  [Symbol.dispose](): void {
    this.guard[Symbol.dispose]();
  }
}

test("events that bring nothing are let through by the dozen, and then at longer and longer intervals", () => {
  using gate = new Gate();
  for (let i = 0; i <= TOLERATED_EVENTS; i++) assert.ok(gate.event(false));
  for (let delay = 1; delay < MAX_MASKED_MILLISECONDS; delay *= 2) {
    assert.equal(gate.event(false), false);
    gate.clock.pass(delay - 0.5);
    assert.equal(gate.event(false), false, `after less than ${delay} ms`);
    gate.clock.pass(0.5);
    assert.equal(gate.event(false), true, `after ${delay} ms`);
  }
  for (let i = 0; i < 10; i++) {
    gate.clock.pass(MAX_MASKED_MILLISECONDS - 1);
    assert.equal(gate.event(false), false);
    gate.clock.pass(1);
    assert.equal(gate.event(false), true, "the longest delay is not exceeded");
  }
});

test("whoever brings something now and then is never made to wait", () => {
  using gate = new Gate();
  for (let round = 0; round < 100; round++) {
    for (let i = 0; i < TOLERATED_EVENTS; i++) assert.ok(gate.event(false));
    assert.ok(gate.event(true));
  }
});

test("what is found without an event makes up for the useless ones, and opens a port that was closed for them", () => {
  using gate = new Gate();
  while (gate.event(false));
  gate.guard.ended(false);
  assert.equal(gate.masked, true, "nothing was found");
  gate.guard.ended(true);
  assert.equal(gate.masked, false);
  for (let i = 0; i < TOLERATED_EVENTS; i++) assert.ok(gate.event(false));
  gate.clock.pass(MAX_MASKED_MILLISECONDS);
  assert.equal(gate.masked, false, "the old timer is gone");
});

test("looking at the ring for reasons of our own is no event", () => {
  using gate = new Gate();
  for (let i = 0; i < 10 * TOLERATED_EVENTS; i++) gate.guard.ended(false);
  assert.equal(gate.masked, false);
});

test("a guard that has ended touches its port no more", () => {
  const gate = new Gate();
  while (gate.event(false));
  gate[Symbol.dispose]();
  gate.clock.pass(MAX_MASKED_MILLISECONDS);
  assert.equal(gate.masked, true);
  gate.masked = false;
  for (let i = 0; i < 3; i++) {
    gate.guard.came();
    gate.guard.ended(false);
  }
  assert.equal(gate.masked, false);
  gate.guard.ended(true);
});
