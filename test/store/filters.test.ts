/** What each filter is for; that it is a disk at all, the suite says. */
import assert from "node:assert/strict";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import { type BlockStore, RequestFlag, type StoreContext } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { Errno } from "../../src/store/errors.ts";
import { cowFilter } from "../../src/store/filters/cow.ts";
import { openStore, parseDisk } from "../../src/store/registry.ts";
import { FaultyStore, RequestRunner } from "../../src/testing/index.ts";

async function disk(words: string, filters: string[]): Promise<Disk> {
  const reactor = new Reactor();
  return new Disk(await openStore(parseDisk(words.split(" "), filters), { reactor }), reactor);
}

async function inDirectory(body: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "vbdkit-filters-"));
  try {
    await body(directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

test("delay holds back what it was told to, and nothing else", async () => {
  await using slow = await disk("memory 1M wdelay=600ms delay-flush=1ms", ["delay"]);
  const start = performance.now();
  await slow.read(0, 512);
  assert.ok(performance.now() - start < 500, "a read was delayed");
  await Promise.all([slow.write(0, new Uint8Array(512)), slow.writeZeroes(4096, 512)]);
  const passed = performance.now() - start;
  assert.ok(passed >= 599, `writes took ${passed} ms`);
});

test("delay lets go of what it holds when it is cancelled", async () => {
  const reactor = new Reactor();
  const spec = parseDisk(["memory", "1M", "delay=20s"], ["delay"]);
  await using store = await openStore(spec, { reactor });
  using runner = new RequestRunner(store, reactor);
  const read = runner.run({ operation: "read", length: 512 });
  await store.cancel(new Error("enough"));
  assert.equal(await read, Errno.ECANCELED);
});

test("error fails what it was told to, as often as it was told to", async () => {
  await using never = await disk("memory 1M error-pwrite-rate=100% error=ENOSPC", ["error"]);
  await never.read(0, 512);
  await assert.rejects(never.write(0, new Uint8Array(512)), { code: "ENOSPC" });
  const outcomes = async () => {
    await using some = await disk("memory 1M error-rate=25% error-seed=7", ["error"]);
    const reads = Array.from({ length: 400 }, () => some.read(0, 1));
    return (await Promise.allSettled(reads)).map(({ status }) => status).join();
  };
  const once = await outcomes();
  const failed = once.split("rejected").length - 1;
  assert.ok(failed > 60 && failed < 140, `${failed} of 400 failed`);
  assert.equal(await outcomes(), once, "the same seed gave other errors");
});

test("error waits for its file, and fails extents too", () =>
  inDirectory(async (directory) => {
    const trigger = join(directory, "trigger");
    await using disk1 = await disk(`memory 1M error-rate=1 error-file=${trigger}`, ["error"]);
    await disk1.read(0, 1);
    await writeFile(trigger, "");
    await assert.rejects(disk1.read(0, 1), { code: "EIO" });
    await assert.rejects(disk1.extents()[Symbol.asyncIterator]().next(), { code: "EIO" });
    await rm(trigger);
    await disk1.read(0, 1);
  }));

test("log writes a line for each request and each answer", () =>
  inDirectory(async (directory) => {
    const logfile = join(directory, "log");
    const logged = await disk(`memory 1M logfile=${logfile} error-pread-rate=1`, ["log", "error"]);
    await logged.write(4096, new Uint8Array(512), { forceUnitAccess: true });
    await assert.rejects(logged.read(0, 16));
    await logged.flush();
    await logged[Symbol.asyncDispose]();
    const lines = (await readFile(logfile, "utf8")).trim().split("\n");
    assert.deepEqual(
      lines.map((line) => line.replace(/^\S+ /, "")),
      [
        "Open size=0x100000 readonly=false",
        "Write id=1 offset=0x1000 count=0x200 fua=1",
        "...Write id=1 return=0",
        "Read id=2 offset=0x0 count=0x10",
        "...Read id=2 return=-1 error=EIO",
        "Flush id=3",
        "...Flush id=3 return=0",
        "Close",
      ],
    );
  }));

test("log tells a diagnostics channel, and refuses a file that it cannot write", async () => {
  const events: unknown[] = [];
  const listener = (event: unknown) => events.push(event);
  subscribe("vbdkit:request", listener);
  try {
    await using logged = await disk("memory 1M", ["log"]);
    await logged.read(8, 4);
  } finally {
    unsubscribe("vbdkit:request", listener);
  }
  const event = { id: 1, operation: "read", offset: 8, length: 4, flags: 0 };
  assert.deepEqual(events, [event, { ...event, status: 0 }]);
  await assert.rejects(disk("memory 1M logfile=/nowhere/log", ["log"]), { code: "ENOENT" });
});

/** cow over a memory disk that can be held and failed. */
async function cowBench(blockSize = 4096): Promise<{
  cow: BlockStore;
  base: FaultyStore;
  overlay: FaultyStore;
  runner: RequestRunner;
  below: RequestRunner;
  reactor: Reactor;
}> {
  const reactor = new Reactor();
  const base = new FaultyStore(await openStore("memory 1M", { reactor }), reactor);
  const below = new RequestRunner(base, reactor);
  await below.write(0, new Uint8Array(65536).fill(0xbb));
  const overlay = new FaultyStore(await openStore("memory 1M", { reactor }), reactor);
  const context: StoreContext = {
    reactor,
    signal: new AbortController().signal,
    readOnly: false,
    engine: "auto",
    open: async () => overlay,
  };
  const options = { "cow-block-size": blockSize };
  const cow = await cowFilter.wrap(base, options, context);
  return { cow, base, overlay, runner: new RequestRunner(cow, reactor), below, reactor };
}

test("cow never writes its base, whatever happens above", async () => {
  const { cow, base, runner, below } = await cowBench();
  await using _cow = cow;
  for (const operation of ["write", "writeZeroes", "discard", "flush"] as const) {
    base.fail(operation, "EIO", Number.POSITIVE_INFINITY);
  }
  await runner.write(100, new Uint8Array(5000).fill(1));
  assert.equal(await runner.run({ operation: "writeZeroes", offset: 10_000, length: 9000 }), 0);
  assert.equal(await runner.run({ operation: "discard", offset: 30_001, length: 9000 }), 0);
  assert.equal(await runner.run({ operation: "flush" }), 0);
  const expected = new Uint8Array(65536).fill(0xbb);
  assert.deepEqual(await below.read(0, 65536), expected);
  expected.fill(1, 100, 5100).fill(0, 10_000, 19_000).fill(0, 30_001, 39_001);
  assert.deepEqual(await runner.read(0, 65536), expected);
});

test("cow keeps both of two writes to parts of one block", async () => {
  const { cow, base, runner } = await cowBench();
  await using _cow = cow;
  base.hold();
  const writes = [
    runner.run({ operation: "write", offset: 0, bytes: new Uint8Array(100).fill(1) }),
    runner.run({ operation: "write", offset: 100, bytes: new Uint8Array(100).fill(2) }),
    runner.run({ operation: "write", offset: 200, bytes: new Uint8Array(8192).fill(3) }),
  ];
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(base.held, 1, "only the first may read the block");
  base.release();
  assert.deepEqual(await Promise.all(writes), [0, 0, 0]);
  const expected = new Uint8Array(12288).fill(0xbb);
  expected.fill(1, 0, 100).fill(2, 100, 200).fill(3, 200, 8392);
  assert.deepEqual(await runner.read(0, 12288), expected);
});

test("a block whose copy failed is still the base's, and may be tried again", async () => {
  const { cow, base, overlay, runner } = await cowBench();
  await using _cow = cow;
  const write = { operation: "write", offset: 10, bytes: new Uint8Array(10).fill(1) } as const;
  base.fail("read", "EIO");
  assert.equal(await runner.run(write), Errno.EIO);
  overlay.fail("write", "ENOSPC");
  assert.equal(await runner.run(write), Errno.ENOSPC);
  assert.deepEqual(await runner.read(0, 64), new Uint8Array(64).fill(0xbb));
  assert.equal(await runner.run(write), 0);
  assert.deepEqual(await runner.read(9, 2), Uint8Array.of(0xbb, 1));
});

test("cow copies at most so many blocks at once, and all get done", async () => {
  const { cow, base, runner } = await cowBench();
  await using _cow = cow;
  base.hold();
  const writes = Array.from({ length: 60 }, (_, i) =>
    runner.run({ operation: "write", offset: i * 4096 + 1, bytes: Uint8Array.of(9) }),
  );
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(base.held, 16);
  base.release();
  assert.deepEqual(new Set(await Promise.all(writes)), new Set([0]));
});

test("cow refuses zeroes that must be fast and are not, and has nothing to cut for whole blocks", async () => {
  const { cow, runner } = await cowBench();
  await using _cow = cow;
  const flags = RequestFlag.mustBeFast;
  const part = { operation: "writeZeroes", offset: 1, length: 10, flags } as const;
  assert.equal(await runner.run(part), Errno.EOPNOTSUPP);
  assert.equal(await runner.run({ ...part, offset: 0, length: 8192 }), 0);
  assert.deepEqual(await runner.read(0, 8192), new Uint8Array(8192));
});

test("cow tells which extents are its own, and asks the base for the others", async () => {
  const { cow, runner } = await cowBench();
  await using _cow = cow;
  await runner.run({ operation: "writeZeroes", offset: 0, length: 4096 });
  await runner.write(524_288, new Uint8Array(4096).fill(5));
  const found = [];
  for await (const extent of cow.extents(0, cow.info.size)) found.push(extent);
  assert.deepEqual(found, [
    { offset: 0, length: 4096, hole: true, zero: true },
    { offset: 4096, length: 61_440, hole: false, zero: false },
    { offset: 65_536, length: 458_752, hole: true, zero: true },
    { offset: 524_288, length: 4096, hole: false, zero: false },
    { offset: 528_384, length: 520_192, hole: true, zero: true },
  ]);
});

test("cow opens its base read-only, writes nonetheless, and keeps changes where it is told to", () =>
  inDirectory(async (directory) => {
    const base = join(directory, "base.img");
    const overlay = join(directory, "overlay.img");
    await writeFile(base, Buffer.alloc(131_072, 1));
    await writeFile(overlay, Buffer.alloc(131_072));
    {
      const words = `file ${base} cow-overlay=file,file=${overlay}`;
      await using both = await disk(words, ["cow"]);
      assert.equal(both.info.readOnly, false);
      await both.write(5, Buffer.from("cow"));
      assert.equal(Buffer.from(await both.read(4, 5)).toString("latin1"), "\x01cow\x01");
      await both.flush();
    }
    assert.ok((await readFile(base)).every((byte) => byte === 1));
    assert.equal((await readFile(overlay)).toString("latin1", 4, 9), "\x01cow\x01");
    await assert.rejects(disk("memory 1M cow-overlay=pattern,size=1M", ["cow"]), { code: "EROFS" });
    await assert.rejects(disk("memory 1M cow-overlay=nothing", ["cow"]), /no driver "nothing"/);
  }));
