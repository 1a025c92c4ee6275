/** What is done at once, without a ring: which reads and writes, and when no more. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Caching, IoFile, IoOperation, type IoRequest } from "../../src/io/engine.ts";
import { goesAtOnce, needsThread, tookAtOnce } from "../../src/io/page-cache.ts";

const { read, write, sync, punchHole } = IoOperation;
const FEW = 16;
const FAST = 0.2;
const SLOW = 20;

function fileOf(caching: Caching): IoFile {
  return new IoFile(0, { operationOf: () => read, finished() {} }, caching);
}

function requestOf(length: number, offset: number): IoRequest {
  return { offset, length, segments: undefined, segmentByte: 0, next: undefined };
}

interface Circumstances {
  readonly offset?: number;
  readonly length?: number;
  readonly round?: number;
  readonly awake?: boolean;
}

function goes(file: IoFile, operation: IoOperation, circumstances: Circumstances = {}): boolean {
  const { offset = 0, length = 4096, round = 1, awake = false } = circumstances;
  return goesAtOnce(file, operation, requestOf(length, offset), round, awake);
}

test("few reads and writes are done at once, many and long ones are the ring's", () => {
  const disk = fileOf(Caching.disk);
  const memory = fileOf(Caching.memory);
  assert.ok(goes(disk, read, { round: 2 }));
  assert.ok(!goes(disk, read, { round: 3 }));
  for (const [file, operation] of [
    [disk, write],
    [memory, read],
    [memory, write],
  ] as const) {
    assert.ok(goes(file, operation, { round: FEW, length: 65536 }));
    assert.ok(!goes(file, operation, { round: FEW + 1 }));
    assert.ok(!goes(file, operation, { length: 65537 }));
    assert.ok(needsThread(file, operation));
    assert.ok(!goes(file, operation, { awake: true }), "a thread that is awake gets it");
  }
  assert.ok(goes(disk, read, { awake: true }), "a cached read needs no thread");
  assert.ok(!needsThread(disk, read));
});

test("a write of part of a page is the ring's, for the rest may have to be read from the disk", () => {
  const disk = fileOf(Caching.disk);
  for (const circumstances of [{ offset: 512 }, { length: 512 }, { offset: 2 ** 40 + 1 }]) {
    assert.ok(!goes(disk, write, circumstances));
    assert.ok(goes(disk, read, circumstances));
    assert.ok(goes(fileOf(Caching.memory), write, circumstances), "in memory there is no disk");
  }
  assert.ok(goes(disk, write, { offset: 2 ** 40 }));
});

test("past the page cache, and for anything else, nothing is done at once", () => {
  for (const operation of [read, write]) assert.ok(!goes(fileOf(Caching.unknown), operation));
  for (const operation of [sync, punchHole]) {
    for (const caching of [Caching.disk, Caching.memory]) {
      assert.ok(!goes(fileOf(caching), operation));
      assert.ok(!needsThread(fileOf(caching), operation));
    }
  }
});

test("after a write that waited the ring has the next ones, more after each, fewer after fast ones", () => {
  const file = fileOf(Caching.disk);
  const turnedAway = () => {
    let count = 0;
    while (!goes(file, write)) count++;
    return count;
  };
  assert.equal(turnedAway(), 0);
  for (const expected of [64, 128, 256]) {
    tookAtOnce(file, SLOW);
    assert.equal(turnedAway(), expected);
  }
  for (let i = 0; i < 20; i++) tookAtOnce(file, SLOW);
  assert.equal(turnedAway(), 16384, "there is an end to it");
  for (let i = 0; i < 6; i++) tookAtOnce(file, FAST);
  tookAtOnce(file, SLOW);
  assert.equal(turnedAway(), 512);
  for (let i = 0; i < 20; i++) tookAtOnce(file, FAST);
  tookAtOnce(file, SLOW);
  assert.equal(turnedAway(), 64, "as if it were the first");
  assert.ok(goes(file, read), "reads do not wait");
});

test("while a flush is under way no write is tried", () => {
  const file = fileOf(Caching.disk);
  file.syncs++;
  assert.ok(!goes(file, write));
  assert.ok(goes(file, read));
  file.syncs--;
  assert.ok(goes(file, write));
});
