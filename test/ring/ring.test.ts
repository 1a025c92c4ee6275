import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { BackRing, FrontRing } from "../../src/ring/index.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
} from "../../src/wire/blkif.ts";
import {
  MAX_RING_PAGES,
  REQ_EVENT,
  REQ_PROD,
  RING_HEADER_WORDS,
  RING_PAGE_SIZE,
  RSP_EVENT,
  RSP_PROD,
} from "../../src/wire/shared-ring.ts";

const layouts = [blkifLayout("x86_64-abi"), blkifLayout("x86_32-abi")];

function makeRing(pages = 1, layout = blkifLayout("x86_64-abi")) {
  const bytes = new Uint8Array(new SharedArrayBuffer(pages * RING_PAGE_SIZE));
  const front = new FrontRing(bytes, layout);
  const back = new BackRing(bytes, layout);
  return { bytes, words: new Uint32Array(bytes.buffer), layout, front, back };
}

function flush(id: number): BlkifRequest {
  const request = new BlkifRequest();
  request.operation = BLKIF_OP_FLUSH_DISKCACHE;
  request.idLow = id;
  return request;
}

/** Takes and answers all that is there. */
function answerAll(back: BackRing): number {
  const request = new BlkifRequest();
  let answered = 0;
  for (let count = back.pending(); count > 0; count--, answered++) {
    back.consume(request);
    back.respond(request.idLow, request.idHigh, request.operation, 0);
  }
  return answered;
}

function takeIds(front: FrontRing): number[] {
  const response = new BlkifResponse();
  const ids: number[] = [];
  for (let count = front.pending(); count > 0; count--) {
    front.consume(response);
    ids.push(response.idLow);
  }
  return ids;
}

test(
  "requests and responses cross rings of 1 to 16 pages, in every slot and on any view of memory",
  shows(["2.6", "2.8"], () => {
    for (const layout of layouts) {
      for (let pages = 1; pages <= MAX_RING_PAGES; pages++) {
        const memory = new Uint8Array((pages + 2) * RING_PAGE_SIZE).fill(0xee);
        const bytes = memory.subarray(RING_PAGE_SIZE, (pages + 1) * RING_PAGE_SIZE);
        const front = new FrontRing(bytes, layout);
        const back = new BackRing(bytes, layout);
        const request = new BlkifRequest();
        const response = new BlkifResponse();
        assert.equal(front.free, front.size);
        for (let i = 0; i < front.size; i++) {
          Object.assign(request, { operation: BLKIF_OP_WRITE, segmentCount: 11, idLow: i });
          request.references.fill(i);
          front.push(request);
        }
        assert.equal(front.free, 0);
        assert.equal(back.pending(), 0, "nothing is seen before it is published");
        front.publish();
        assert.equal(back.pending(), front.size);
        for (let i = 0; i < back.size; i++) {
          back.consume(request);
          assert.deepEqual([request.idLow, request.references[10]], [i, i]);
          back.respond(
            i,
            ~i,
            request.operation,
            i % 2 === 0 ? BLKIF_RSP_ERROR : BLKIF_RSP_EOPNOTSUPP,
          );
        }
        back.publish();
        assert.equal(front.pending(), front.size);
        for (let i = 0; i < front.size; i++) {
          front.consume(response);
          const { idLow, idHigh, operation, status } = response;
          assert.deepEqual([idLow, idHigh], [i, ~i >>> 0]);
          assert.deepEqual([operation, status], [BLKIF_OP_WRITE, i % 2 === 0 ? -1 : -2]);
        }
        assert.equal(front.free, front.size);
        const outside = [memory.subarray(0, RING_PAGE_SIZE), memory.subarray(-RING_PAGE_SIZE)];
        assert.ok(outside.every((page) => page.every((byte) => byte === 0xee)));
      }
    }
  }),
);

test("a fresh ring looks as SHARED_RING_INIT leaves it, and keeps nothing of what the pages held", () => {
  const bytes = new Uint8Array(RING_PAGE_SIZE).fill(0x77);
  new FrontRing(bytes, blkifLayout("native"));
  const words = new Uint32Array(bytes.buffer);
  const expected = new Uint32Array(words.length);
  expected[REQ_EVENT] = 1;
  expected[RSP_EVENT] = 1;
  assert.deepEqual(words, expected);
});

test(
  "one notification wakes a sleeping end; a busy one is left alone",
  shows(["2.11"], () => {
    const { front, back } = makeRing();
    front.push(flush(1));
    assert.equal(front.publish(), true, "the backend sleeps");
    front.push(flush(2));
    assert.equal(front.publish(), false, "it was already woken");
    assert.equal(answerAll(back), 2);
    front.push(flush(3));
    assert.equal(front.publish(), false, "it has not said that it will sleep");
    assert.equal(back.finalCheck(), true, "and before it sleeps it looks again");
    assert.equal(answerAll(back), 1);
    assert.equal(back.finalCheck(), false);
    front.push(flush(4));
    assert.equal(front.publish(), true);

    assert.equal(back.publish(), true, "three responses, one notification");
    assert.equal(back.publish(), false, "nothing new");
    assert.deepEqual(takeIds(front), [1, 2, 3]);
    answerAll(back);
    assert.equal(back.publish(), false);
    assert.equal(front.finalCheck(), true);
    assert.deepEqual(takeIds(front), [4]);
    assert.equal(front.finalCheck(), false);
  }),
);

test(
  "a response slot holds the response alone: its padding is zero, whatever was there",
  shows(["2.15"], () => {
    for (const layout of layouts) {
      const { words, front, back } = makeRing(1, layout);
      front.push(flush(5));
      front.publish();
      assert.equal(back.pending(), 1);
      back.consume(new BlkifRequest());
      words.fill(0xffff_ffff, RING_HEADER_WORDS);
      back.respond(5, 0, BLKIF_OP_FLUSH_DISKCACHE, 0);
      const slot = words.subarray(RING_HEADER_WORDS, RING_HEADER_WORDS + layout.responseSize / 4);
      assert.deepEqual([...slot], [5, 0, BLKIF_OP_FLUSH_DISKCACHE, 0].slice(0, slot.length));
    }
  }),
);

test(
  "a frontend that claims impossible requests breaks its ring for good, and nobody spins",
  shows(["2.13"], () => {
    const claims = [33, 1000, 0x8000_0000, -1, 0xffff_ffff];
    for (const claim of claims) {
      const { words, front, back } = makeRing();
      front.push(flush(1));
      front.push(flush(2));
      front.publish();
      assert.equal(back.pending(), 2);
      const request = new BlkifRequest();
      back.consume(request);
      words[REQ_PROD] = claim;
      assert.equal(back.pending(), -1);
      assert.equal(back.broken, true);
      words[REQ_PROD] = 2;
      assert.equal(back.pending(), -1, "it stays broken");
      assert.equal(back.finalCheck(), false);
      back.respond(request.idLow, 0, request.operation, 0);
      back.consume(request);
      assert.equal(request.idLow, 2, "what was counted before is still there");
      assert.equal(back.publish(), true);
      assert.deepEqual(takeIds(front), [1]);
    }
  }),
);

test("requests fill the ring only as responses leave it", () => {
  const { words, front, back } = makeRing();
  const request = new BlkifRequest();
  for (let i = 0; i < front.size; i++) front.push(flush(i));
  front.publish();
  for (let count = back.pending(); count > 0; count--) back.consume(request);
  assert.equal(back.canConsume(), false);
  assert.equal(back.pending(), 0);
  back.respond(0, 0, 0, 0);
  assert.equal(back.canConsume(), true);
  words[REQ_PROD] = front.size + 1;
  assert.equal(back.pending(), 1);
  words[REQ_PROD] = front.size + 2;
  assert.equal(back.pending(), -1);
});

test(
  "a backend that claims impossible responses breaks the ring for good",
  shows(["2.14"], () => {
    for (const claim of [2, 33, 0x8000_0000, -1]) {
      const { words, front, back } = makeRing();
      front.push(flush(1));
      front.publish();
      front.push(flush(2));
      answerAll(back);
      words[RSP_PROD] = claim;
      assert.equal(front.pending(), -1, "only one request was published");
      assert.equal(front.broken, true);
      assert.equal(front.finalCheck(), false);
      words[RSP_PROD] = 1;
      assert.equal(front.pending(), -1);
      assert.equal(front.free, front.size - 2);
    }
  }),
);

test("an index that goes back breaks the ring, and what was counted stays", () => {
  const { words, front, back } = makeRing();
  for (let id = 0; id < 5; id++) front.push(flush(id));
  front.publish();
  assert.equal(back.pending(), 5);
  words[REQ_PROD] = 3;
  assert.equal(back.pending(), -1);
  const request = new BlkifRequest();
  for (let id = 0; id < 5; id++) {
    back.consume(request);
    back.respond(request.idLow, 0, request.operation, 0);
  }
  back.publish();
  assert.equal(front.pending(), 5);
  words[RSP_PROD] = 3;
  assert.equal(front.pending(), -1);
  const response = new BlkifResponse();
  for (let id = 0; id < 5; id++) front.consume(response);
  assert.equal(response.idLow, 4);
});

test("whatever a peer writes into the pages, nothing throws and the counters stay in order", () => {
  const poke = fc.record({ word: fc.nat(1023), value: fc.nat(0xffff_ffff) });
  const nudge = fc.record({ word: fc.nat(3), value: fc.nat(80) });
  const step = fc.oneof(poke, nudge, fc.constantFrom("back", "front"));
  const property = fc.property(fc.array(step), fc.constantFrom(...layouts), (steps, layout) => {
    const { words, front, back } = makeRing(1, layout);
    const request = new BlkifRequest();
    const response = new BlkifResponse();
    for (const [i, action] of steps.entries()) {
      if (typeof action === "object") words[action.word] = action.value;
      else if (action === "back") {
        const counted = back.pending();
        for (let n = 0; n < counted && i % 3 > 0; n++) back.consume(request);
        back.finalCheck();
        while (back.requestsConsumed !== back.responsesProduced) back.respond(1, 2, 3, 4);
        back.publish();
      } else {
        while (front.free > 0) front.push(request);
        front.publish();
        const counted = front.pending();
        front.finalCheck();
        for (let n = 0; n < counted; n++) front.consume(response);
      }
      const taken = (back.requestsConsumed - back.responsesProduced) >>> 0;
      assert.ok(taken <= back.size && back.pending() <= back.size);
      assert.ok(front.free >= 0 && front.free <= front.size && front.pending() <= front.size);
    }
  });
  fc.assert(property, { numRuns: 300 });
});

test("a shared index is read once for each look at it", (context) => {
  const { front, back } = makeRing();
  front.push(flush(1));
  const load = context.mock.method(Atomics, "load");
  const loadsOf = (look: () => unknown) => {
    load.mock.resetCalls();
    look();
    return load.mock.calls.map((call) => call.arguments[1]);
  };
  assert.deepEqual(
    loadsOf(() => front.publish()),
    [REQ_EVENT],
  );
  assert.deepEqual(
    loadsOf(() => back.pending()),
    [REQ_PROD],
  );
  assert.deepEqual(
    loadsOf(() => back.consume(new BlkifRequest())),
    [],
  );
  assert.deepEqual(
    loadsOf(() => back.finalCheck()),
    [REQ_PROD],
  );
  back.respond(1, 0, 3, 0);
  assert.deepEqual(
    loadsOf(() => back.publish()),
    [RSP_EVENT],
  );
  assert.deepEqual(
    loadsOf(() => front.pending()),
    [RSP_PROD],
  );
  assert.deepEqual(
    loadsOf(() => front.consume(new BlkifResponse())),
    [],
  );
  assert.deepEqual(
    loadsOf(() => front.finalCheck()),
    [RSP_PROD],
  );
});

test("a restarted backend gets the requests again that its former self never answered", () => {
  const { bytes, layout, front, back } = makeRing();
  for (let id = 1; id <= 5; id++) front.push(flush(id));
  front.publish();
  back.pending();
  const request = new BlkifRequest();
  for (let i = 0; i < 3; i++) back.consume(request);
  back.respond(1, 0, request.operation, 0);
  back.publish();
  const again = new BackRing(bytes, layout, "attach");
  assert.equal(again.pending(), 4);
  assert.equal(answerAll(again), 4);
  again.publish();
  assert.deepEqual(takeIds(front), [1, 2, 3, 4, 5]);
});

test("a restarted frontend keeps the slots of requests in flight until they are answered", () => {
  const { bytes, layout, words, front, back } = makeRing();
  for (let id = 1; id <= 4; id++) front.push(flush(id));
  front.publish();
  back.pending();
  const request = new BlkifRequest();
  back.consume(request);
  back.respond(1, 0, request.operation, 0);
  back.publish();
  const again = new FrontRing(bytes, layout, "attach");
  assert.equal(again.free, again.size - 3);
  assert.equal(again.pending(), 0);
  again.push(flush(9));
  again.publish();
  answerAll(back);
  back.publish();
  assert.deepEqual(takeIds(again), [2, 3, 4, 9]);
  assert.equal(again.free, again.size);

  words[RSP_PROD] = 1000;
  const refused = new FrontRing(bytes, layout, "attach");
  assert.equal(refused.broken, true);
  assert.equal(refused.pending(), -1);
});

test("our own mistakes are caught before they touch the ring", () => {
  const { bytes, layout, front, back } = makeRing();
  assert.throws(() => back.consume(new BlkifRequest()), /invariant/);
  assert.throws(() => back.respond(0, 0, BLKIF_OP_READ, 0), /invariant/);
  assert.throws(() => front.consume(new BlkifResponse()), /invariant/);
  for (let i = 0; i < front.size; i++) front.push(flush(i));
  assert.throws(() => front.push(flush(0)), /invariant/);
  front.publish();
  assert.throws(() => back.consume(new BlkifRequest()), /invariant/, "nobody has counted yet");
  for (const length of [0, 100, RING_PAGE_SIZE + 4, (MAX_RING_PAGES + 1) * RING_PAGE_SIZE]) {
    assert.throws(() => new BackRing(new Uint8Array(length), layout), /invariant/);
  }
  assert.equal(bytes.length, RING_PAGE_SIZE);
});

test("two threads that sleep whenever the ring lets them lose no request and no wake-up", async () => {
  const total = 20_000;
  const ring = new SharedArrayBuffer(RING_PAGE_SIZE);
  /** Words that stand for the two event channels: of the backend, then of the frontend. */
  const events = new Int32Array(new SharedArrayBuffer(8));
  const front = new FrontRing(new Uint8Array(ring), blkifLayout("native"));
  const worker = new Worker(new URL("echo-worker.ts", import.meta.url), {
    workerData: { ring, events, total },
  });
  const exited = once(worker, "exit");
  try {
    await once(worker, "online");
    const response = new BlkifResponse();
    let sent = 0;
    let sleeps = 0;
    for (let received = 0; received < total; ) {
      const event = Atomics.load(events, 1);
      const depth = 1 + (received % front.size);
      while (sent < total && sent - received < depth) front.push(flush(sent++));
      if (front.publish()) {
        Atomics.add(events, 0, 1);
        Atomics.notify(events, 0);
      }
      for (let count = front.pending(); count > 0; count--, received++) {
        front.consume(response);
        assert.equal(response.idLow, received);
      }
      if (received === total || (sent < total && sent - received < depth) || front.finalCheck()) {
        continue;
      }
      sleeps++;
      assert.notEqual(Atomics.wait(events, 1, event, 10_000), "timed-out", "a wake-up was lost");
    }
    assert.equal(front.broken, false);
    assert.ok(sleeps > 0);
  } finally {
    await worker.terminate();
    await exited;
  }
});
