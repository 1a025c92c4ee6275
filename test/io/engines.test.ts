/** The engines themselves: their choice, their sharing, and how errors come back. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { promisify } from "node:util";
import {
  Caching,
  type EngineName,
  IoFile,
  IoOperation,
  type IoRequest,
} from "../../src/io/engine.ts";
import { chooseEngine, ioUringMissingReason, leaseEngine } from "../../src/io/engines.ts";
import { ffi, ffiMissingReason } from "../../src/io/ffi.ts";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { VectorTable } from "../../src/io/vector-table.ts";

const run = promisify(execFile);
const directory = mkdtempSync(join(tmpdir(), "vbdkit-engines-"));
after(() => rmSync(directory, { recursive: true, force: true }));

const engines: EngineName[] = ["libuv"];
if (ffi() !== undefined) engines.push("pread");
if (ioUringMissingReason() === undefined) engines.push("io_uring");

class Request implements IoRequest {
  readonly operation: IoOperation;
  readonly offset: number;
  readonly length: number;
  readonly segments: SegmentList | undefined;
  readonly segmentByte = 0;
  next: IoRequest | undefined = undefined;
  readonly result: Promise<number>;
  readonly finish: (result: number) => void;

  constructor(operation: IoOperation, offset: number, length: number, segments?: SegmentList) {
    this.operation = operation;
    this.offset = offset;
    this.length = length;
    this.segments = segments;
    const { promise, resolve } = Promise.withResolvers<number>();
    this.result = promise;
    this.finish = resolve;
  }
}

const owner = {
  operationOf: (request: IoRequest) => (request as Request).operation,
  finished: (request: IoRequest, result: number) => (request as Request).finish(result),
};

function memory(length: number): SegmentList {
  const segments = new SegmentList(1);
  segments.add(allocateRegion(length), 0, length);
  return segments;
}

for (const name of engines) {
  test(`${name}: an error of the system comes back as its negative errno`, async () => {
    const reactor = new Reactor();
    using lease = leaseEngine(reactor, name);
    const full = openSync("/dev/full", "r+");
    const nothing = openSync("/dev/null", "r+");
    try {
      const request = (path: number, operation: IoOperation) => {
        const made = new Request(operation, 0, 512, memory(512));
        lease.engine.submit(new IoFile(path, owner, Caching.unknown), made);
        reactor.settle();
        return made.result;
      };
      const ENOSPC = 28;
      const EINVAL = 22;
      assert.equal(await request(full, IoOperation.write), -ENOSPC);
      assert.equal(await request(full, IoOperation.read), 0);
      assert.equal(await request(nothing, IoOperation.read), -5, "the end of a file is EIO");
      assert.equal(await request(nothing, IoOperation.sync), -EINVAL);
      assert.ok((await request(nothing, IoOperation.punchHole)) < 0);
    } finally {
      closeSync(full);
      closeSync(nothing);
    }
  });

  test(`${name}: files of one thread share the engine, and the last one closes it`, () => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    // Asking whether io_uring works has opened and closed one already; libuv opens what it needs at the first watch.
    leaseEngine(new Reactor(), name)[Symbol.dispose]();
    const before = descriptors();
    const reactor = new Reactor();
    const first = leaseEngine(reactor, name);
    const second = leaseEngine(reactor, name);
    using other = leaseEngine(new Reactor(), "libuv");
    assert.equal(first.engine, second.engine);
    assert.notEqual(first.engine, other.engine);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    const third = leaseEngine(reactor, name);
    assert.equal(third.engine, second.engine);
    second[Symbol.dispose]();
    third[Symbol.dispose]();
    assert.equal(descriptors(), before);
    using fresh = leaseEngine(reactor, name);
    assert.notEqual(fresh.engine, second.engine);
  });

  test(`${name}: a file with a thousand requests does not keep another one waiting`, async () => {
    const path = join(directory, name);
    writeFileSync(path, Buffer.alloc(4096));
    const descriptor = openSync(path, "r");
    try {
      const reactor = new Reactor();
      using lease = leaseEngine(reactor, name);
      const order: Request[] = [];
      const inOrder = {
        ...owner,
        finished(request: IoRequest, result: number) {
          order.push(request as Request);
          owner.finished(request, result);
        },
      };
      const busy = new IoFile(descriptor, inOrder, Caching.unknown);
      const quiet = new IoFile(descriptor, inOrder, Caching.unknown);
      const requests: Request[] = [];
      for (let i = 0; i < 1000; i++) {
        const request = new Request(IoOperation.read, 0, 512, memory(512));
        requests.push(request);
        lease.engine.submit(busy, request);
      }
      const small = new Request(IoOperation.read, 0, 512, memory(512));
      lease.engine.submit(quiet, small);
      reactor.settle();
      await Promise.all([small, ...requests].map(({ result }) => result));
      assert.ok(order.indexOf(small) < 500, `was number ${order.indexOf(small)}`);
    } finally {
      closeSync(descriptor);
    }
  });
}

test("the choice: io_uring; where it is missing plain calls in memory, libuv elsewhere", () => {
  assert.equal(chooseEngine("libuv", { inMemory: true }), "libuv");
  const best = engines.at(-1)!;
  assert.equal(chooseEngine("auto", { inMemory: false }), best === "pread" ? "libuv" : best);
  assert.equal(chooseEngine("auto", { inMemory: true }), best);
  if (ffi() === undefined) {
    assert.throws(
      () => chooseEngine("pread", { inMemory: true }),
      /the engine pread needs foreign calls, and/,
    );
  }
});

describe("what the system can do to us", { skip: ffiMissingReason() ?? false }, () => {
  const source = (name: string) => JSON.stringify(import.meta.resolve(`../../src/io/${name}.ts`));
  const traced = async (fault: string, script: string) => {
    const { stdout } = await run("strace", [
      ...["-f", "-qq", "-o", "/dev/null", "-e", `inject=${fault}`],
      ...[process.execPath, "--input-type=module", "--eval", script],
    ]);
    return stdout;
  };

  test("a kernel that forbids io_uring leaves libuv, and says so to whoever asks for io_uring", async () => {
    const stdout = await traced(
      "io_uring_setup:error=EPERM",
      `import { chooseEngine } from ${source("engines")};
       console.log(chooseEngine("auto", { inMemory: false }));
       console.log(chooseEngine("auto", { inMemory: true }));
       try { chooseEngine("io_uring", { inMemory: false }); } catch (error) { console.log(error.message); }`,
    );
    assert.equal(
      stdout,
      "libuv\npread\nthe engine io_uring does not work here: EPERM: operation not permitted, io_uring_setup\n",
    );
  });

  for (const [what, inject, output] of [
    ["an interrupted call is made again", "preadv2:error=EINTR:when=1+2", "0 6 6\n0 6 6\n"],
    ["a call that is always turned away fails", "preadv2:error=EAGAIN", "-11 0 0\n-11 0 0\n"],
  ] as const) {
    test(what, async () => {
      const path = join(directory, "turned-away");
      writeFileSync(path, Buffer.alloc(8192, 6));
      const stdout = await traced(
        inject,
        `import { openSync } from "node:fs";
         import { IoFile } from ${source("engine")};
         import { leaseEngine } from ${source("engines")};
         import { allocateRegion, SegmentList } from ${source("memory")};
         import { Reactor } from ${source("reactor")};
         const reactor = new Reactor();
         const lease = leaseEngine(reactor, "pread");
         const region = allocateRegion(8192);
         const segments = new SegmentList(2);
         segments.add(region, 4096, 4096);
         segments.add(region, 0, 4096);
         const file = new IoFile(openSync(${JSON.stringify(path)}), {
           operationOf: () => 0,
           finished: (request, result) => console.log(result, region.bytes[0], region.bytes[8191]),
         }, 1);
         for (let i = 0; i < 2; i++) {
           lease.engine.submit(file, { offset: 0, length: 8192, segments, segmentByte: 0 });
           reactor.settle();
         }`,
      );
      assert.equal(stdout, output);
    });
  }

  test("memory that is unmapped or out of its region never reaches the kernel", () => {
    const vectors = new VectorTable(1);
    const region = allocateRegion(4096);
    const list = new SegmentList(1);
    list.add(region, 1000, 4096);
    assert.throws(() => vectors.fill(0, list, 0, 4096), /a segment leaves its region/);
    vectors.fill(0, list, 0, 3096);
    assert.equal(vectors.firstAddress, region.address + 1000);
    region[Symbol.dispose]();
    assert.throws(() => vectors.fill(0, list, 0, 512), /has been unmapped/);
  });
});
