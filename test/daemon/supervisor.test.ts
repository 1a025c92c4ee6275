/** Processes of guests, begun and ended as their vbds come and go. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type GuestProcess, Supervisor } from "../../src/daemon/supervisor.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { XenStore } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";
import { TestClock } from "../block/backend-world.ts";

const ROOT = "/local/domain/0/backend/vbd3";

class FakeProcess implements GuestProcess {
  readonly domid: number;
  readonly #end = Promise.withResolvers<string>();
  readonly ended: Promise<string> = this.#end.promise;

  constructor(domid: number) {
    this.domid = domid;
  }

  die(): void {
    this.#end.resolve("was ended by SIGKILL");
  }

  async leave(): Promise<void> {
    this.#end.resolve("ended with status 0");
  }
}

async function world() {
  const machine = await EmbeddedMachine.create({ reactor: new Reactor(), memoryPages: 512 });
  const { store } = await machine.createDomain(0);
  const started: FakeProcess[] = [];
  const notes: string[] = [];
  const clock = new TestClock();
  const trouble = { starts: true };
  const supervisor = await Supervisor.start<FakeProcess>({
    store,
    roots: [ROOT],
    clock,
    start: (domid) => {
      if (!trouble.starts) throw new Error("there is no memory");
      const process = new FakeProcess(domid);
      started.push(process);
      return process;
    },
    onnote: (message) => void notes.push(message),
  });
  return {
    ...{ machine, store, started, notes, clock, supervisor, trouble },
    async [Symbol.asyncDispose]() {
      await supervisor[Symbol.asyncDispose]();
      await machine[Symbol.asyncDispose]();
    },
  };
}

async function make(store: XenStore, domid: number): Promise<void> {
  await store.write(`${ROOT}/${domid}/51712/state`, "1");
}

async function until(what: string, is: () => boolean): Promise<void> {
  for (let tries = 0; !is(); tries++) {
    assert.ok(tries < 500, `it never came that ${what}`);
    await sleep(10);
  }
}

test("a guest has one process from its first vbd to its last", async () => {
  await using at = await world();
  await make(at.store, 3);
  await until("there is a process", () => at.started.length === 1);
  await at.store.write(`${ROOT}/3/51728/state`, "1");
  await make(at.store, 4);
  await until("there are two", () => at.started.length === 2);
  assert.deepEqual(at.supervisor.domids, [3, 4]);
  await at.store.remove(`${ROOT}/3`);
  await until("one is left", () => at.supervisor.domids.length === 1);
  assert.equal(await at.started[0]!.ended, "ended with status 0");
  // The number may come again.
  await make(at.store, 3);
  await until("there are three", () => at.started.length === 3);
});

test("a guest's directory without vbds, which a driver domain may not remove, needs no process", async () => {
  await using at = await world();
  await make(at.store, 3);
  await until("there is a process", () => at.started.length === 1);
  await at.store.remove(`${ROOT}/3/51712`);
  await until("there is none", () => at.supervisor.domids.length === 0);
  assert.deepEqual(await at.store.list(`${ROOT}/3`), []);
});

test("a process that dies is begun again, later each time, and given up when it dies over and over", async () => {
  await using at = await world();
  await make(at.store, 3);
  for (let life = 1; life <= 6; life++) {
    await until(`life ${life} begins`, () => at.started.length === life);
    at.started.at(-1)!.die();
    await until("it is said", () => at.notes.length === life);
    const pause = 100 << (life - 1);
    at.clock.advance(pause - 1);
    await sleep(5);
    assert.equal(at.started.length, life);
    at.clock.advance(1);
  }
  assert.match(at.notes[0]!, /domain 3 was ended by SIGKILL: begun again/);
  assert.match(at.notes[5]!, /over and over: its disks are not served/);
  at.clock.advance(100_000);
  await sleep(5);
  assert.equal(at.started.length, 6);
});

test("a process whose guest goes while it is dead is not begun again", async () => {
  await using at = await world();
  await make(at.store, 3);
  await until("there is a process", () => at.started.length === 1);
  at.started[0]!.die();
  await until("it is said", () => at.notes.length === 1);
  await at.store.remove(`${ROOT}/3`);
  await until("it is forgotten", () => at.supervisor.domids.length === 0);
  at.clock.advance(1000);
  await sleep(5);
  assert.equal(at.started.length, 1);
});

test("a number that comes again while its dead process waits has one process all the same", async () => {
  await using at = await world();
  await make(at.store, 3);
  await until("there is a process", () => at.started.length === 1);
  at.started[0]!.die();
  await until("it is said", () => at.notes.length === 1);
  await at.store.remove(`${ROOT}/3`);
  await until("it is forgotten", () => at.supervisor.domids.length === 0);
  await make(at.store, 3);
  await until("there is another", () => at.started.length === 2);
  at.clock.advance(1000);
  await at.store.write(`${ROOT}/3/51728/state`, "1");
  await make(at.store, 4);
  await until("all of that was seen", () => at.supervisor.domids.includes(4));
  assert.deepEqual(
    at.started.map(({ domid }) => domid),
    [3, 3, 4],
  );
});

test("vbds that come and go while their process ends are not counted as its deaths", async () => {
  await using at = await world();
  await make(at.store, 3);
  for (let life = 1; life <= 8; life++) {
    await until(`life ${life} begins`, () => at.started.length === life);
    const process = at.started.at(-1)!;
    let leaves = 0;
    process.leave = async () => void leaves++;
    await at.store.remove(`${ROOT}/3`);
    await until("it is asked to leave", () => leaves === 1);
    await make(at.store, 3);
    await make(at.store, 4 + life);
    await until("it is seen", () => at.supervisor.domids.includes(4 + life));
    process.die();
    await at.store.remove(`${ROOT}/${4 + life}`);
    await until("it is over", () => !at.supervisor.domids.includes(4 + life));
    at.started.splice(
      at.started.findIndex(({ domid }) => domid === 4 + life),
      1,
    );
    assert.equal(leaves, 1);
  }
  assert.deepEqual(at.notes, []);
});

test("a process that cannot be begun is tried again", async () => {
  await using at = await world();
  at.trouble.starts = false;
  await make(at.store, 3);
  await until("it is said", () => at.notes.length === 1);
  assert.match(at.notes[0]!, /domain 3 cannot be begun .*no memory.*: begun again/);
  at.clock.advance(100);
  await until("it is said again", () => at.notes.length === 2);
  at.trouble.starts = true;
  at.clock.advance(200);
  await until("there is a process", () => at.started.length === 1);
});

test("names that are no domids begin nothing", async () => {
  await using at = await world();
  await at.store.write(`${ROOT}/x/51712/state`, "1");
  await at.store.write(`${ROOT}/-1/51712/state`, "1");
  await make(at.store, 7);
  await until("there is a process", () => at.started.length > 0);
  assert.deepEqual(at.supervisor.domids, [7]);
});
