/** Small requests side by side on the disk, which go to the backend as one, and how each of them ends. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { BlockRequest } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import {
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
  type BlkifRequest,
} from "../../src/wire/blkif.ts";
import { GUEST, Operation, type PlainRequest, World } from "./frontend-world.ts";

const SECTOR = 512;
const INDIRECT = { "feature-max-indirect-segments": "32" };

/** A request of sectors; what it writes is all `value`. */
function sectors(
  at: World,
  operation: Operation,
  sector: number,
  count = 1,
  value = 0,
): PlainRequest {
  const plain = at.request(operation, 0, value, Math.ceil(count / 8));
  plain.request.offset = sector * SECTOR;
  plain.request.length = count * SECTOR;
  return plain;
}

/** Writes of one sector each, from `first` on, of values that tell them apart. */
function writes(at: World, first: number, count: number): PlainRequest[] {
  return Array.from({ length: count }, (_, i) =>
    at.submit(sectors(at, Operation.write, first + i, 1, (first + i) % 251)),
  );
}

async function allEnded(plain: readonly PlainRequest[], status = 0): Promise<void> {
  for (const request of plain) assert.equal(await request.status, status);
  for (const { ends } of plain) assert.equal(ends, 1);
}

function assertWritten(at: World, first: number, count: number): void {
  for (let sector = first; sector < first + count; sector++) {
    const bytes = at.bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR);
    assert.ok(
      bytes.every((byte) => byte === sector % 251),
      `sector ${sector}`,
    );
  }
}

const shape = ({ operation, sectorLow, segmentCount, lastSectors }: BlkifRequest) => ({
  operation,
  sectorLow,
  segmentCount,
  last: lastSectors[segmentCount - 1],
});

test("sectors side by side are one command of packed pages, and each ends on its own", async () => {
  await using at = await World.start();
  const written = writes(at, 3, 10);
  await allEnded(written);
  assertWritten(at, 3, 10);
  assert.deepEqual(at.backend.seen.map(shape), [
    { operation: BLKIF_OP_WRITE, sectorLow: 3, segmentCount: 2, last: 1 },
  ]);
  const reads = Array.from({ length: 10 }, (_, i) => at.submit(sectors(at, Operation.read, 3 + i)));
  await allEnded(reads);
  for (const [i, { bytes }] of reads.entries()) {
    assert.ok(bytes.subarray(0, SECTOR).every((byte) => byte === 3 + i));
    // Nothing of a neighbour's data.
    assert.ok(bytes.subarray(SECTOR).every((byte) => byte === 0));
  }
  assert.equal(at.backend.seen.length, 2);
  assert.equal(at.frontend.counters.requests, 2);
  assert.equal(at.frontend.counters.merged, 18);
});

test("requests of many sizes and of scattered memory are cut and joined without a byte out of place", async () => {
  await using at = await World.start({ keys: INDIRECT });
  const counts = [1, 7, 8, 9, 3, 16, 2, 30, 1, 90, 5, 300, 4, 4, 4, 700, 1, 2];
  let sector = 5;
  const all: PlainRequest[] = [];
  for (const [i, count] of counts.entries()) {
    const plain = sectors(at, Operation.write, sector, count, i + 1);
    // Two parts of the memory the other way round.
    const half = Math.floor(count / 2) * SECTOR;
    const segments = new SegmentList(2);
    const region = plain.request.segments!.regions[0]!;
    if (half > 0) {
      plain.bytes.fill(i + 101, 0, count * SECTOR - half);
      segments.add(region, count * SECTOR - half, half);
    }
    segments.add(region, 0, count * SECTOR - half);
    plain.request.segments = segments;
    all.push(at.submit(plain));
    sector += count;
  }
  await allEnded(all);
  let byte = 5 * SECTOR;
  for (const [i, count] of counts.entries()) {
    const half = Math.floor(count / 2) * SECTOR;
    const end = byte + count * SECTOR;
    assert.ok(at.bytes.subarray(byte, byte + half).every((value) => value === i + 1));
    const second = half > 0 ? i + 101 : i + 1;
    assert.ok(at.bytes.subarray(byte + half, end).every((value) => value === second));
    byte = end;
  }
  assert.ok(at.frontend.counters.merged > 5);
});

for (const [keys, pages] of [
  [{}, 11],
  [INDIRECT, 32],
] as const) {
  test(`no command grows beyond the ${pages} segments that were agreed on`, async () => {
    await using at = await World.start({ keys });
    const written = Array.from({ length: 70 }, (_, i) =>
      at.submit(at.request(Operation.write, i, i + 1)),
    );
    await allEnded(written);
    for (let i = 0; i < 70; i++) assert.equal(at.bytes[i * 4096], i + 1);
    const commands = at.backend.seen.map(({ operation, segmentCount, indirectSegmentCount }) =>
      operation === BLKIF_OP_INDIRECT ? indirectSegmentCount : segmentCount,
    );
    assert.deepEqual(
      commands,
      Array.from({ length: Math.ceil(70 / pages) }, (_, i) => Math.min(pages, 70 - i * pages)),
    );
  });
}

test("what is not side by side, overlaps, does something else, or is a flush joins nothing", async () => {
  await using at = await World.start({ keys: { "feature-flush-cache": "1" } });
  const all = [
    sectors(at, Operation.write, 0, 2, 1),
    // It begins within the one before.
    sectors(at, Operation.write, 1, 2, 2),
    // It ends where the one before begins.
    sectors(at, Operation.write, 0, 1, 3),
    at.request(Operation.flush, 0),
    sectors(at, Operation.write, 1, 1, 4),
    sectors(at, Operation.read, 2),
    // It is empty, and needs no command.
    sectors(at, Operation.read, 3, 0),
    sectors(at, Operation.read, 3),
  ];
  for (const plain of all) at.submit(plain);
  await allEnded(all);
  assert.equal(at.backend.seen.length, 7);
  assert.equal(at.frontend.counters.merged, 0);
  assert.deepEqual(
    [0, 1, 2].map((sector) => at.bytes[sector * SECTOR]),
    [3, 4, 2],
  );
});

test("an ordered write joins nothing, before or after it", async () => {
  await using at = await World.start({ keys: { "feature-barrier": "1" } });
  const all = [0, 1, 2].map((sector) => sectors(at, Operation.write, sector, 1, sector + 1));
  for (const [i, plain] of all.entries()) at.submit(plain, i === 1);
  await allEnded(all);
  assert.deepEqual(
    at.backend.seen.map(({ operation }) => operation),
    [BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_WRITE],
  );
});

/** The backend fails what touches these sectors, and does the rest. */
function spoil(at: World, ...bad: number[]): void {
  at.backend.onrequest = (request, queue) => {
    let count = 0;
    for (let i = 0; i < request.segmentCount; i++) {
      count += request.lastSectors[i]! - request.firstSectors[i]! + 1;
    }
    const { sectorLow } = request;
    const failed = bad.some((sector) => sector >= sectorLow && sector < sectorLow + count);
    const status = failed ? BLKIF_RSP_ERROR : at.backend.execute(request, at.bytes);
    at.backend.answer(request, status, queue);
  };
}

test("requests that failed together are done again one by one, so that none fails for its neighbour", async () => {
  await using at = await World.start();
  spoil(at, 23);
  const written = writes(at, 20, 8);
  const [bad] = written.splice(3, 1);
  assert.equal(await bad!.status, Errno.EIO);
  await allEnded(written);
  assertWritten(at, 20, 3);
  assertWritten(at, 24, 4);
  assert.equal(at.backend.seen.length, 9);
  assert.equal(at.frontend.counters.errors, 1);
  // Those that went alone are joined again the next time.
  at.serve();
  for (const { request } of written.slice(3)) {
    request.operation = Operation.read;
    at.frontend.submit(request);
  }
  at.guest.reactor.soon();
  await at.until(() => written.slice(3).every(({ ends }) => ends === 2), "the reads");
  assert.equal(at.backend.seen.length, 10);
});

test("with all of it failing, each is told once, and the next requests are served", async () => {
  await using at = await World.start();
  at.backend.onrequest = (request, queue) => at.backend.answer(request, BLKIF_RSP_ERROR, queue);
  await allEnded(writes(at, 0, 200), Errno.EIO);
  at.serve();
  await allEnded(writes(at, 0, 200));
  assertWritten(at, 0, 200);
});

test("what failed before a barrier that was sent after it fails as a whole: nothing old is written later", async () => {
  await using at = await World.start({ keys: { "feature-barrier": "1" } });
  let failing = true;
  at.backend.onrequest = (request, queue) => {
    const status = failing ? BLKIF_RSP_ERROR : at.backend.execute(request, at.bytes);
    failing = false;
    at.backend.answer(request, status, queue);
  };
  const old = writes(at, 0, 3);
  const ordered = at.submit(sectors(at, Operation.write, 0, 3, 99), true);
  await allEnded([ordered]);
  await allEnded(old, Errno.EIO);
  assert.ok(at.bytes.subarray(0, 3 * SECTOR).every((byte) => byte === 99));
});

test("a request that is being cut goes on where it was when a joined one before it fails", async () => {
  await using at = await World.start();
  at.backend.onrequest = undefined;
  // Commands for all slots but one, which the first piece of the long write takes.
  const filling = Array.from({ length: 29 }, (_, i) =>
    at.submit(at.request(Operation.read, 200 - 2 * i)),
  );
  const joined = writes(at, 0, 4);
  const long = at.submit(at.request(Operation.write, 100, 7, 40));
  await at.until(() => at.backend.seen.length === 32, "a full ring");
  const [run, ...others] = at.backend.seen.splice(29);
  assert.equal(run!.sectorLow, 0);
  at.backend.answer(run!, BLKIF_RSP_ERROR);
  at.serve();
  for (const request of [...at.backend.seen.splice(0), ...others]) {
    at.backend.onrequest!(request, 0);
  }
  at.backend.publish();
  await allEnded([...filling, ...joined, long]);
  assertWritten(at, 0, 4);
  assert.ok(at.bytes.subarray(100 * 4096, 140 * 4096).every((byte) => byte === 7));
});

test("resumed, every request of a joined command is sent again, and ends once", async () => {
  await using at = await World.start();
  at.backend.onrequest = undefined;
  const written = writes(at, 0, 60);
  const waiting = writes(at, 100, 300);
  await at.until(() => at.backend.seen.length > 0, "the commands");
  await at.frontend.suspend();
  const resuming = at.frontend.resume();
  await at.backend.frontendIs(6);
  at.backend.detach();
  await at.backend.become(6);
  await at.backend.frontendIs(1);
  at.serve();
  await at.backend.connect(GUEST, {});
  await resuming;
  await allEnded([...written, ...waiting]);
  assertWritten(at, 0, 60);
  assertWritten(at, 100, 300);
});

test("a backend that goes ends every request of a joined command, once", async () => {
  await using at = await World.start();
  at.backend.onrequest = undefined;
  const written = writes(at, 0, 20);
  await at.until(() => at.backend.seen.length === 1, "the command");
  await at.backend.become(5);
  await allEnded(written, Errno.EIO);
});

test("whoever submits from a completion finds the others of the command untouched", async () => {
  await using at = await World.start();
  const region = allocateRegion(4096);
  const order: number[] = [];
  let left = 40;
  const requests = Array.from({ length: 8 }, (_, i) => {
    const request = new BlockRequest({
      completed: (ended) => {
        assert.equal(ended.status, 0);
        order.push(ended.tag);
        if (left-- > 0) at.frontend.submit(ended);
      },
    });
    const segments = new SegmentList(1);
    segments.add(region, i * SECTOR, SECTOR);
    Object.assign(request, { offset: i * SECTOR, length: SECTOR, segments, tag: i });
    return request;
  });
  for (const request of requests) at.frontend.submit(request);
  at.guest.reactor.soon();
  await at.until(() => order.length === 48, "all of them");
  assert.deepEqual(
    order,
    Array.from({ length: 48 }, (_, i) => i % 8),
  );
  assert.equal(at.backend.seen.length, 6);
});

test("with several rings a run stays on one, and longer ones take turns", async () => {
  await using at = await World.start({
    keys: { "multi-queue-max-queues": "2" },
    limits: { maxQueues: 2 },
  });
  const used: [number, number][] = [];
  const { backend } = at;
  backend.onrequest = (request, queue) => {
    used.push([queue, request.segmentCount]);
    assert.equal(request.operation, BLKIF_OP_READ);
    backend.answer(request, BLKIF_RSP_OKAY, queue);
  };
  const reads = Array.from({ length: 33 }, (_, i) => at.submit(at.request(Operation.read, i)));
  await allEnded(reads);
  assert.deepEqual(
    used.map(([, count]) => count),
    [11, 11, 11],
  );
  assert.equal(new Set(used.map(([queue]) => queue)).size, 2);
});
