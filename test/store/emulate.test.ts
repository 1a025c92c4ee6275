/** What a store lacks is made of what it has, and what it has is left alone. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import {
  BlockRequest,
  type BlockStore,
  type Operation,
  RequestFlag,
} from "../../src/store/block-store.ts";
import { emulate } from "../../src/store/emulate.ts";
import { Errno, StoreError } from "../../src/store/errors.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import { openStore, parseDisk } from "../../src/store/registry.ts";
import { ForgetfulStore, RequestRunner } from "../../src/testing/index.ts";

/** A store that notes what it is asked. */
function noting(reactor: Reactor, notes: string[], more: object = {}): BlockStore {
  const note = async (text: string) => void notes.push(text);
  return promiseStore({
    reactor,
    size: 2 ** 20,
    block: { maximum: 65_536 },
    async read(offset, length) {
      await note(`read ${offset} ${length}`);
      return new Uint8Array(length);
    },
    write: (offset, { length }) => note(`write ${offset} ${length}`),
    flush: () => note("flush"),
    ...more,
  });
}

test("a store that has everything is left as it is", async () => {
  const reactor = new Reactor();
  await using store = await openStore("memory 1M", { reactor });
  assert.equal(emulate(store, reactor), store);
  const once = emulate(noting(reactor, []), reactor);
  assert.equal(emulate(once, reactor), once);
});

test("long requests are cut, and the first error ends them", async () => {
  const reactor = new Reactor();
  const notes: string[] = [];
  const store = emulate(noting(reactor, notes), reactor);
  using runner = new RequestRunner(store, reactor);
  assert.equal(await runner.run({ operation: "read", offset: 100, length: 150_000 }), 0);
  assert.deepEqual(notes, ["read 100 65536", "read 65636 65536", "read 131172 18928"]);
  const failing = emulate(
    noting(reactor, [], {
      async read(offset: number, length: number) {
        if (offset >= 131_072) throw new StoreError("ENOMEM", "no");
        return new Uint8Array(length);
      },
    }),
    reactor,
  );
  using second = new RequestRunner(failing, reactor);
  assert.equal(await second.run({ operation: "read", length: 2 ** 20 }), Errno.ENOMEM);
});

test("forced unit access is a flush after the write, and only after it", async () => {
  const reactor = new Reactor();
  const notes: string[] = [];
  using runner = new RequestRunner(emulate(noting(reactor, notes), reactor), reactor);
  const flags = RequestFlag.forceUnitAccess;
  await runner.run({ operation: "write", bytes: new Uint8Array(70_000), flags });
  assert.deepEqual(notes, ["write 0 65536", "write 65536 4464", "flush"]);
  notes.length = 0;
  await runner.run({ operation: "writeZeroes", length: 10, flags });
  assert.deepEqual(notes, ["write 0 10", "flush"]);
});

test("zeroes are written where there is no other way, or refused where they must be fast", async () => {
  const reactor = new Reactor();
  const notes: string[] = [];
  using runner = new RequestRunner(emulate(noting(reactor, notes), reactor), reactor);
  const zero = { operation: "writeZeroes", offset: 512, length: 100_000 } as const;
  assert.equal(await runner.run({ ...zero, flags: RequestFlag.mustBeFast }), Errno.EOPNOTSUPP);
  assert.equal(await runner.run(zero), 0);
  assert.deepEqual(notes, ["write 512 65536", "write 66048 34464"]);
});

test("zeroes that may be holes are discarded where that zeroes", async () => {
  const reactor = new Reactor();
  const notes: string[] = [];
  const store = noting(reactor, notes, {
    discardZeroes: true,
    async discard(offset: number, length: number) {
      notes.push(`discard ${offset} ${length}`);
    },
  });
  using runner = new RequestRunner(emulate(store, reactor), reactor);
  const flags = RequestFlag.mayUnmap | RequestFlag.mustBeFast;
  assert.equal(await runner.run({ operation: "writeZeroes", length: 4096, flags }), 0);
  assert.deepEqual(notes, ["discard 0 4096"]);
});

test("a store that finds out late that it cannot zero is helped", async () => {
  const reactor = new Reactor();
  const notes: string[] = [];
  const store = noting(reactor, notes, {
    async writeZeroes() {
      throw new StoreError("EOPNOTSUPP", "not on this file system");
    },
  });
  using runner = new RequestRunner(emulate(store, reactor), reactor);
  assert.equal(await runner.run({ operation: "writeZeroes", length: 4096 }), 0);
  assert.deepEqual(notes, ["write 0 4096"]);
  const flags = RequestFlag.mustBeFast;
  const status = await runner.run({ operation: "writeZeroes", length: 4096, flags });
  assert.equal(status, Errno.EOPNOTSUPP);
});

test("discards, flushes and prefetches that a store lacks have their own answers", async () => {
  const reactor = new Reactor();
  const store = emulate(noting(reactor, [], { flush: undefined }), reactor);
  using runner = new RequestRunner(store, reactor);
  assert.equal(await runner.run({ operation: "discard", length: 512 }), Errno.EOPNOTSUPP);
  assert.equal(await runner.run({ operation: "flush" }), 0);
  assert.equal(await runner.run({ operation: "cache", length: 512 }), 0);
  assert.ok(store.info.native.has("cache") && store.info.native.has("forceUnitAccess"));
});

test("an operation that is none of ours ends with an error", async () => {
  const reactor = new Reactor();
  const filtered = ["log", "delay", "error", "cow"].map((name) =>
    openStore(parseDisk(["memory", "1M"], [name]), { reactor }),
  );
  const drivers = ["memory 1M", "null 1M", "pattern 1M"].map((disk) =>
    openStore(disk, { reactor }),
  );
  const plain = emulate(noting(reactor, []), reactor);
  for (const store of [...(await Promise.all([...filtered, ...drivers])), plain]) {
    const status = await new Promise<number>((resolve) => {
      const request = new BlockRequest({ completed: (ended) => resolve(ended.status) });
      request.operation = 99 as Operation;
      store.submit(request);
      reactor.soon();
    });
    assert.equal(status, Errno.EOPNOTSUPP);
    await store[Symbol.asyncDispose]();
  }
});

test("zeroes of an emulated store are as durable as they were asked to be", async () => {
  const reactor = new Reactor();
  const store = new ForgetfulStore(reactor, 65_536);
  using runner = new RequestRunner(emulate(store, reactor), reactor);
  await runner.write(0, new Uint8Array(1024).fill(1), RequestFlag.forceUnitAccess);
  const flags = RequestFlag.forceUnitAccess;
  await runner.run({ operation: "writeZeroes", length: 512, flags });
  await runner.run({ operation: "writeZeroes", offset: 512, length: 512 });
  store.powerCut();
  const bytes = await runner.read(0, 1024);
  assert.deepEqual([bytes[0], bytes[512]], [0, 1]);
});
