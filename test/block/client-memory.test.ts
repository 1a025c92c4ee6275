/** Memory that a frontend lends its users, whose pages the backend gets itself. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Machine, parseDisk } from "../../src/index.ts";
import { type MemoryRegion, SegmentList } from "../../src/io/memory.ts";
import { allocateFor } from "../../src/store/allocate-for.ts";
import { GUEST, Operation, type PlainRequest, World, type WorldOptions } from "./frontend-world.ts";

const PAGE = 4096;
const PERSISTENT: WorldOptions = {
  keys: { "feature-persistent": "1", "feature-max-indirect-segments": "32" },
};

function lend(at: World, pages: number): MemoryRegion {
  const region = at.frontend.allocate(pages * PAGE);
  assert.ok(region, "there is memory to lend");
  return region;
}

/** A request on the disk's first bytes whose data lies in pieces [start, length] of the region. */
function of(
  at: World,
  operation: Operation,
  region: MemoryRegion,
  ...pieces: [number, number][]
): PlainRequest {
  const plain = at.request(operation, 0);
  const { request } = plain;
  request.segments = new SegmentList(pieces.length);
  request.length = 0;
  for (const [start, length] of pieces) {
    request.segments.add(region, start, length);
    request.length += length;
  }
  return plain;
}

const copied = (at: World) => at.frontend.counters.copiedBytes;

test("data in lent pages is read and written without a copy, direct and indirect", async () => {
  await using at = await World.start(PERSISTENT);
  using region = lend(at, 30);
  for (let i = 0; i < region.bytes.length; i++) region.bytes[i] = i % 251;
  const before = region.bytes.slice();
  for (const length of [512, PAGE, 11 * PAGE, 11 * PAGE + 512, 30 * PAGE]) {
    at.bytes.fill(0);
    const write = at.submit(of(at, Operation.write, region, [0, length]));
    assert.equal(await write.status, 0);
    assert.deepEqual(at.bytes.subarray(0, length), before.subarray(0, length));
    assert.ok(at.bytes.subarray(length).every((byte) => byte === 0));
    region.bytes.fill(0xee);
    assert.equal(await at.submit(of(at, Operation.read, region, [0, length])).status, 0);
    assert.deepEqual(region.bytes.subarray(0, length), before.subarray(0, length));
    assert.ok(
      region.bytes.subarray(length).every((byte) => byte === 0xee),
      "nothing beyond it",
    );
    region.bytes.set(before);
  }
  assert.equal(copied(at), 0);
});

test("pages in any order make up one request, and parts of pages are copied", async () => {
  await using at = await World.start(PERSISTENT);
  using region = lend(at, 6);
  for (let page = 0; page < 6; page++) region.bytes.fill(page + 1, page * PAGE, (page + 1) * PAGE);
  const run = async (...pieces: [number, number][]) => {
    assert.equal(await at.submit(of(at, Operation.write, region, ...pieces)).status, 0);
    let byte = 0;
    for (const [start, length] of pieces) {
      const wanted = region.bytes.subarray(start, start + length);
      assert.deepEqual(at.bytes.subarray(byte, byte + length), wanted);
      byte += length;
    }
    return copied(at);
  };
  assert.equal(await run([5 * PAGE, PAGE], [0, 2 * PAGE], [3 * PAGE, 512]), 0);
  assert.equal(await run([512, PAGE]), PAGE, "it begins within a page");
  assert.equal(await run([0, 512], [PAGE, PAGE]), 2 * PAGE + 512, "a gap within a page");
  assert.equal(await run([0, 1], [PAGE, 511]), 2 * PAGE + 1024, "pieces of bytes");
});

test("requests side by side go as one without a copy, and a request is cut where it is too long", async () => {
  await using at = await World.start({ keys: { "feature-persistent": "1" } });
  using region = lend(at, 32);
  for (let i = 0; i < region.bytes.length; i++) region.bytes[i] = i % 249;
  const writes = [0, 1, 2].map((page) => {
    const plain = of(at, Operation.write, region, [(7 - page) * PAGE, PAGE]);
    plain.request.offset = page * PAGE;
    return at.submit(plain);
  });
  for (const write of writes) assert.equal(await write.status, 0);
  assert.equal(at.frontend.counters.merged, 2);
  for (const page of [0, 1, 2]) {
    const there = at.bytes.subarray(page * PAGE, (page + 1) * PAGE);
    assert.deepEqual(there, region.bytes.subarray((7 - page) * PAGE, (8 - page) * PAGE));
  }
  const long = at.submit(of(at, Operation.write, region, [0, 32 * PAGE]));
  assert.equal(await long.status, 0);
  assert.deepEqual(at.bytes.subarray(0, 32 * PAGE), region.bytes);
  assert.equal(copied(at), 0);
});

for (const [why, options] of [
  ["keeps no grants", {}],
  ["is not trusted", { ...PERSISTENT, limits: { trusted: false } }],
] as const) {
  test(`a backend that ${why} gets copies`, async () => {
    await using at = await World.start(options);
    using region = lend(at, 2);
    region.bytes.fill(7);
    assert.equal(await at.submit(of(at, Operation.write, region, [0, PAGE + 512])).status, 0);
    assert.equal(at.bytes[PAGE + 511], 7);
    assert.equal(copied(at), PAGE + 512);
  });
}

test("what is given back is lent again, zeroed, and no more than a disk's share is", async () => {
  await using at = await World.start({ ...PERSISTENT, memoryPages: 16384 });
  const free = at.guest.grants.freePages;
  const first = lend(at, 256);
  first.bytes.fill(3);
  first[Symbol.dispose]();
  const second = lend(at, 256);
  assert.equal(second.bytes.buffer, first.bytes.buffer);
  assert.equal(second.bytes.byteOffset, first.bytes.byteOffset);
  assert.ok(second.bytes.every((byte) => byte === 0));
  using _rest = lend(at, 1792);
  assert.equal(at.frontend.allocate(1), undefined);
  assert.equal(at.guest.grants.freePages, free - 2048);
  const other = allocateFor(at.frontend, PAGE);
  assert.equal(other.bytes.length, PAGE, "there is other memory");
  second[Symbol.dispose]();
});

test("of a domain with few pages a disk leaves most to others", async () => {
  await using at = await World.start({ ...PERSISTENT, memoryPages: 1024 });
  const free = at.guest.grants.freePages;
  assert.equal(at.frontend.allocate((Math.floor(free / 4) + 1) * PAGE), undefined);
  using _lent = lend(at, Math.floor(free / 4));
});

test("pages that are granted leave entries to the page pools, and what gets none is copied", async () => {
  await using at = await World.start({ ...PERSISTENT, memoryPages: 4096, grantEntries: 128 });
  using region = lend(at, 200);
  for (let page = 0; page < 200; page++) {
    const write = of(at, Operation.write, region, [page * PAGE, PAGE]);
    assert.equal(await at.submit(write).status, 0);
  }
  assert.equal(await at.submit(at.request(Operation.write, 3, 7)).status, 0);
  assert.equal(at.frontend.counters.freezes["grant shortage"], 0);
  assert.equal(copied(at), 201 * PAGE);
});

test("when the disk has closed its pages are the domain's again, those in use when they are given back", async () => {
  const at = await World.start(PERSISTENT);
  const free = at.guest.grants.freePages;
  const used = lend(at, 8);
  lend(at, 8)[Symbol.dispose]();
  assert.equal(await at.submit(of(at, Operation.write, used, [0, 8 * PAGE])).status, 0);
  const closing = at.frontend[Symbol.asyncDispose]();
  await at.backend.frontendIs(5, 6);
  at.backend[Symbol.dispose]();
  await at.backend.become(6);
  await closing;
  const { freePages, counters } = at.guest.grants;
  assert.equal(counters.granted, 0);
  used.bytes.fill(1);
  used[Symbol.dispose]();
  assert.equal(at.guest.grants.freePages, freePages + 8);
  assert.ok(at.guest.grants.freePages >= free);
  assert.equal(at.frontend.allocate(PAGE), undefined);
  await at[Symbol.asyncDispose]();
});

test("the pages follow the disk to another backend, and what was in flight is done there", async () => {
  await using at = await World.start({ ...PERSISTENT, leaks: true });
  using region = lend(at, 4);
  region.bytes.fill(9);
  assert.equal(await at.submit(of(at, Operation.write, region, [0, 4 * PAGE])).status, 0);
  at.backend.onrequest = undefined;
  at.bytes.fill(0);
  const write = at.submit(of(at, Operation.write, region, [0, 4 * PAGE]));
  await at.until(() => at.backend.seen.length > 0, "the old backend has it");
  const old = at.backend;
  const backend = await at.move(5);
  const resuming = at.frontend.resume();
  await backend.connect(GUEST, PERSISTENT.keys);
  await resuming;
  assert.equal(await write.status, 0);
  assert.ok(at.bytes.subarray(0, 4 * PAGE).every((byte) => byte === 9));
  old[Symbol.dispose]();
});

test("a disk of a machine reads and writes aligned data without a copy in the frontend", async () => {
  await using machine = await Machine.start();
  for (const link of ["thread", "worker"] as const) {
    await using disk = await machine.attach(parseDisk(["memory", "8M"], []), {
      vdev: link === "thread" ? "xvda" : "xvdb",
      link,
    });
    const bytes = Uint8Array.from({ length: 3 << 20 }, (_, i) => i * 7);
    await disk.write(PAGE, bytes);
    assert.deepEqual(await disk.read(PAGE, bytes.length), bytes);
    assert.equal(disk.frontend.counters.copiedBytes, 0);
  }
});
