/** The file driver, on each engine and on a disk and tmpfs, judged by Node's own fs, QEMU and strace. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { promisify } from "node:util";
import type { EngineName } from "../../src/io/engine.ts";
import { ioUringMissingReason } from "../../src/io/engines.ts";
import { ffi, ffiMissingReason } from "../../src/io/ffi.ts";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import {
  BlockRequest,
  type BlockStore,
  type EngineChoice,
  type Extent,
  Operation,
  RequestFlag,
} from "../../src/store/block-store.ts";
import { type FileOptions, fileDriver } from "../../src/store/drivers/file.ts";
import { Errno } from "../../src/store/errors.ts";
import { parseParameters } from "../../src/store/parameters.ts";
import { storeSuite } from "../../src/testing/store-suite.ts";
import { SeededRandom } from "../../src/util/random.ts";

const run = promisify(execFile);
const KIB = 1024;
const MIB = 1024 * KIB;
const without = ffiMissingReason() ?? false;

const onDisk = mkdtempSync(join(tmpdir(), "vbdkit-file-"));
const inMemory = mkdtempSync("/dev/shm/vbdkit-file-");
after(() => {
  for (const directory of [onDisk, inMemory]) rmSync(directory, { recursive: true, force: true });
});

const engines: EngineName[] = ["libuv"];
if (ffi() !== undefined) engines.push("pread");
if (ioUringMissingReason() === undefined) engines.push("io_uring");

let images = 0;
/** A new image of that content or that many bytes of nothing. */
function image(content: Uint8Array | number, directory: string = onDisk): string {
  const path = join(directory, `image-${images++}`);
  writeFileSync(path, typeof content === "number" ? "" : content);
  if (typeof content === "number") truncateSync(path, content);
  return path;
}

/** A disk and its reactor, as the split driver has them. */
class Disk implements AsyncDisposable {
  readonly reactor: Reactor;
  readonly store: BlockStore;
  readonly #done = new Map<BlockRequest, (status: number) => void>();

  constructor(reactor: Reactor, store: BlockStore) {
    this.reactor = reactor;
    this.store = store;
  }

  static async open(
    file: string,
    engine: EngineChoice = "auto",
    options: Partial<FileOptions> & { readOnly?: boolean; reactor?: Reactor } = {},
  ): Promise<Disk> {
    const { readOnly = false, reactor = new Reactor(), ...rest } = options;
    const store = await fileDriver.open(
      { file, cache: "writeback", lock: true, shared: false, ...rest },
      {
        reactor,
        signal: new AbortController().signal,
        readOnly,
        engine,
        open: () => Promise.reject(new Error("a file opens nothing else")),
      },
    );
    return new Disk(reactor, store);
  }

  /** Submits without settling. */
  start(fields: Partial<BlockRequest>): Promise<number> {
    const request = Object.assign(new BlockRequest(this), fields);
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#done.set(request, resolve);
    this.store.submit(request);
    return promise;
  }

  completed(request: BlockRequest): void {
    const resolve = this.#done.get(request);
    assert.ok(resolve, "a request completes once");
    this.#done.delete(request);
    resolve(request.status);
  }

  do(fields: Partial<BlockRequest>): Promise<number> {
    const status = this.start(fields);
    this.reactor.settle();
    return status;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const region = allocateRegion(length);
    const segments = new SegmentList(1);
    segments.add(region, 0, length);
    assert.equal(await this.do({ operation: Operation.read, offset, length, segments }), 0);
    return Buffer.from(region.bytes);
  }

  async write(offset: number, bytes: Uint8Array, flags = 0): Promise<number> {
    const region = allocateRegion(bytes.length);
    region.bytes.set(bytes);
    const segments = new SegmentList(1);
    segments.add(region, 0, bytes.length);
    const { length } = bytes;
    return await this.do({ operation: Operation.write, flags, offset, length, segments });
  }

  async extents(): Promise<Extent[]> {
    return await all(this.store.extents(0, this.store.info.size));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.store[Symbol.asyncDispose]();
    assert.equal(this.#done.size, 0, "every request has completed");
  }
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}

/** Odd pieces of one region: gaps between them, unsorted, so that nothing merges. */
function scatter(random: SeededRandom, length: number): SegmentList {
  const region = allocateRegion(3 * length + 8192);
  const segments = new SegmentList(512);
  let at = random.below(64);
  for (let left = length; left > 0; ) {
    const most =
      segments.count === 511
        ? left
        : Math.min(left, 1 + random.below(random.below(4) ? 700 : 9000));
    segments.add(region, at, most);
    at += most + 1 + random.below(3);
    left -= most;
    if (segments.count === 512) assert.equal(left, 0);
  }
  return segments;
}

function gather(list: SegmentList, from: number, length: number): Buffer {
  const parts: Uint8Array[] = [];
  for (let i = 0; i < list.count; i++) {
    const start = list.starts[i]!;
    parts.push(list.regions[i]!.bytes.subarray(start, start + list.lengths[i]!));
  }
  return Buffer.concat(parts).subarray(from, from + length);
}

for (const engine of engines) {
  for (const directory of [onDisk, inMemory]) {
    for (const cache of ["writeback", "none"] as const) {
      if (cache === "none" && ffi() === undefined) continue;
      const where = directory === onDisk ? "a disk" : "tmpfs";
      storeSuite(`file, ${engine} on ${where}, cache=${cache}`, {
        async open() {
          const file = image(MIB, directory);
          const { store, reactor } = await Disk.open(file, engine, { cache });
          const reopen = async () => await Disk.open(file, engine, { cache });
          return { store, reactor, reopen };
        },
      });

      test(`${engine} on ${where}, cache=${cache}: random transfers in odd pieces are what a buffer says`, async () => {
        const seed = (Math.random() * 2 ** 31) | 0;
        const random = new SeededRandom(seed);
        const model = Buffer.alloc(MIB);
        const path = image(model, directory);
        await using disk = await Disk.open(path, engine, { cache });
        assert.equal(disk.store.info.engine, engine);
        for (let round = 0; round < 40; round++) {
          const checks: Promise<void>[] = [];
          let from = 0;
          // Requests of one round do not overlap, so that their order does not matter.
          for (let i = 0; i < 1 + random.below(12) && from < MIB; i++) {
            const aligned = random.below(3) === 0;
            const unit = aligned ? 4096 : disk.store.info.block.minimum;
            const offset = Math.ceil((from + random.below(20 * KIB)) / unit) * unit;
            const length = Math.min((1 + random.below((60 * KIB) / unit)) * unit, MIB - offset);
            if (length <= 0) break;
            from = offset + length;
            const segmentByte = aligned ? 0 : random.below(3000);
            let segments = scatter(random, length + segmentByte);
            if (aligned) {
              segments = new SegmentList(1);
              segments.add(allocateRegion(length), 0, length);
            }
            const operation = random.below(2) === 0 ? Operation.read : Operation.write;
            if (operation === Operation.write) {
              for (const region of new Set(segments.regions)) {
                region?.bytes.set(Buffer.alloc(region.bytes.length, `${random.below(1e9)}-`));
              }
              gather(segments, segmentByte, length).copy(model, offset);
            }
            const flags = random.below(20) === 0 ? RequestFlag.forceUnitAccess : 0;
            const fields = { operation, flags, offset, length, segments, segmentByte };
            checks.push(
              disk.start(fields).then((status) => {
                assert.equal(status, 0, `seed ${seed}`);
                const got = gather(segments, segmentByte, length);
                const want = model.subarray(offset, offset + length);
                assert.ok(got.equals(want), `seed ${seed}: ${length} bytes at ${offset}`);
              }),
            );
          }
          disk.reactor.settle();
          await Promise.all(checks);
        }
        assert.equal(await disk.do({ operation: Operation.flush }), 0);
        assert.ok(readFileSync(path).equals(model), `seed ${seed}`);
      });
    }
  }

  test(`${engine}: more requests than the engine has slots all complete, those of two disks in turn`, async () => {
    const bytes = Buffer.alloc(4 * MIB, "0123456789abcdef");
    const reactor = new Reactor();
    await using first = await Disk.open(image(bytes), engine, { reactor });
    await using second = await Disk.open(image(bytes), engine, { reactor });
    const list = new SegmentList(1);
    list.add(allocateRegion(4096), 0, 4096);
    const statuses: Promise<number>[] = [];
    for (let i = 0; i < 1000; i++) {
      for (const disk of [first, second]) {
        const offset = i * 4096;
        const operation = Operation.read;
        statuses.push(disk.start({ operation, offset, length: 4096, segments: list }));
      }
    }
    reactor.settle();
    assert.deepEqual(new Set(await Promise.all(statuses)), new Set([0]));
  });

  test(`${engine}: a read of a part that someone cut off the file is EIO, not garbage`, async () => {
    const path = image(Buffer.alloc(64 * KIB, 1));
    await using disk = await Disk.open(path, engine);
    truncateSync(path, 10 * KIB);
    const segments = new SegmentList(1);
    segments.add(allocateRegion(16 * KIB), 0, 16 * KIB);
    const operation = Operation.read;
    const read = (offset: number) => disk.do({ operation, offset, length: 16 * KIB, segments });
    assert.equal(await read(0), Errno.EIO);
    assert.equal(await read(32 * KIB), Errno.EIO);
  });

  test(`${engine}: cancel ends what is in flight, and the disk goes on`, async () => {
    await using disk = await Disk.open(image(Buffer.alloc(MIB, 7)), engine);
    const segments = new SegmentList(1);
    segments.add(allocateRegion(4096), 0, 4096);
    const statuses: Promise<number>[] = [];
    for (let i = 0; i < 500; i++) {
      statuses.push(disk.start({ operation: Operation.read, length: 4096, segments }));
    }
    await disk.store.cancel(new Error("the test wants it"));
    for (const status of await Promise.all(statuses)) {
      assert.ok(status === 0 || status === Errno.ECANCELED);
    }
    assert.equal((await disk.read(0, 10))[0], 7);
  });

  test(`${engine}: strace sees one fdatasync for each flush and each durable write`, async () => {
    const path = image(MIB);
    const trace = join(onDisk, `trace-${engine}`);
    const script = `
      import { BlockRequest, Operation, RequestFlag } from ${source("store/block-store.ts")};
      import { fileDriver } from ${source("store/drivers/file.ts")};
      import { allocateRegion, SegmentList } from ${source("io/memory.ts")};
      import { Reactor } from ${source("io/reactor.ts")};
      const reactor = new Reactor();
      const store = await fileDriver.open(
        { file: ${JSON.stringify(path)}, cache: "writeback", lock: true, shared: false },
        { reactor, signal: new AbortController().signal, readOnly: false, engine: "${engine}" });
      const segments = new SegmentList(1);
      segments.add(allocateRegion(4096), 0, 4096);
      const one = (operation, flags = 0) => new Promise((resolve) => {
        const request = new BlockRequest({ completed: (done) => resolve(done.status) });
        const length = operation === Operation.flush ? 0 : 4096;
        store.submit(Object.assign(request, { operation, flags, length, segments }));
        reactor.settle();
      });
      const { flush, read, write } = Operation;
      const durable = RequestFlag.forceUnitAccess;
      const statuses = [await one(write), await one(read, durable), await one(flush),
        await one(write, durable), await one(write, durable), await one(flush)];
      await store[Symbol.asyncDispose]();
      console.log(store.info.engine, statuses.join());`;
    const { stdout } = await run("strace", [
      ...["-f", "-qq", "-e", "trace=fdatasync", "-o", trace],
      ...[process.execPath, "--input-type=module", "--eval", script],
    ]);
    assert.equal(stdout, `${engine} 0,0,0,0,0,0\n`);
    const calls = readFileSync(trace, "latin1").match(/fdatasync\(\d+/g) ?? [];
    assert.equal(calls.length, 4);
  });
}

test("after a flush that failed no later one is believed", async () => {
  const path = image(MIB);
  const script = `
    import { BlockRequest, Operation } from ${source("store/block-store.ts")};
    import { fileDriver } from ${source("store/drivers/file.ts")};
    import { Reactor } from ${source("io/reactor.ts")};
    const reactor = new Reactor();
    const store = await fileDriver.open(
      { file: ${JSON.stringify(path)}, cache: "writeback", lock: true, shared: false },
      { reactor, signal: new AbortController().signal, readOnly: false, engine: "auto" });
    const flush = () => new Promise((resolve) => {
      const request = new BlockRequest({ completed: (done) => resolve(done.status) });
      store.submit(Object.assign(request, { operation: Operation.flush }));
      reactor.settle();
    });
    console.log(await flush(), await flush(), await flush());
    await store[Symbol.asyncDispose]();`;
  // strace counts the calls of each thread, so there is one.
  const fault = ["-e", "inject=fdatasync:error=EIO:when=2"];
  const { stdout } = await run(
    "strace",
    [
      "-f",
      "-qq",
      "-o",
      "/dev/null",
      ...fault,
      process.execPath,
      "--input-type=module",
      "-e",
      script,
    ],
    { env: { ...process.env, UV_THREADPOOL_SIZE: "1" } },
  );
  assert.equal(stdout, `0 ${Errno.EIO} ${Errno.EIO}\n`);
});

function source(name: string): string {
  return JSON.stringify(import.meta.resolve(`../../src/${name}`));
}

describe("what a disk refuses", () => {
  test("requests outside the disk, changes of a read-only disk and operations unknown are answered, not done", async () => {
    const bytes = Buffer.alloc(8 * KIB, 3);
    const path = image(bytes);
    await using disk = await Disk.open(path, "auto", { readOnly: true });
    await using writable = await Disk.open(image(bytes));
    const segments = new SegmentList(1);
    segments.add(allocateRegion(8 * KIB), 0, 8 * KIB);
    const of = (fields: Partial<BlockRequest>) => ({ length: 4096, segments, ...fields });
    const { read, write, discard, writeZeroes } = Operation;
    assert.equal(await disk.do(of({ operation: read, offset: 4097 })), Errno.EINVAL);
    assert.equal(await disk.do(of({ operation: read, offset: 2 ** 60 })), Errno.EINVAL);
    for (const operation of [write, discard, writeZeroes]) {
      assert.equal(await disk.do(of({ operation })), Errno.EROFS);
      assert.equal(await writable.do(of({ operation, offset: 8 * KIB })), Errno.ENOSPC);
    }
    assert.equal(await disk.do(of({ operation: 9 as Operation })), Errno.EOPNOTSUPP);
    assert.equal(await disk.do(of({ operation: read, length: 0 })), 0);
    assert.equal(statSync(path).size, 8 * KIB);
  });

  test("a closed disk answers ESHUTDOWN", async () => {
    const disk = await Disk.open(image(4096));
    await disk[Symbol.asyncDispose]();
    assert.equal(await disk.do({ operation: Operation.flush }), Errno.ESHUTDOWN);
  });
});

describe("opening says in one line what is wrong and what to do", () => {
  const refuses = async (path: string, code: string, message: RegExp, options = {}) => {
    await assert.rejects(Disk.open(path, "auto", options), (error: Error & { code: string }) => {
      assert.equal(error.code, code);
      assert.match(error.message, message);
      assert.ok(!error.message.includes("\n"));
      return true;
    });
  };

  test("a missing image, which is not made", async () => {
    const path = join(onDisk, "missing");
    await refuses(path, "ENOENT", /there is no .*missing; .*truncate -s 1G/);
    assert.throws(() => statSync(path), { code: "ENOENT" });
  });

  test("a directory", async () => {
    await refuses(onDisk, "EISDIR", /is a directory/);
    await refuses(onDisk, "EISDIR", /is a directory/, { readOnly: true });
  });

  test("a character device and a FIFO", async () => {
    const fifo = join(onDisk, "fifo");
    await run("mkfifo", [fifo]);
    for (const path of ["/dev/null", fifo]) {
      await refuses(path, "EINVAL", /neither a file nor a block device/);
    }
  });

  test("an empty image and one of a broken sector", async () => {
    await refuses(image(0), "EINVAL", /is empty; give it a size: truncate -s 1G/);
    await refuses(image(1000), "EINVAL", /has 1000 bytes.*: truncate -s 1024/);
  });

  test("a command in a message can be pasted into a shell", async () => {
    const path = join(onDisk, "it's a disk.img");
    const quoted = `'${join(onDisk, "it'\\\\''s a disk.img").replaceAll(".", "\\.")}'$`;
    await refuses(path, "ENOENT", new RegExp(`truncate -s 1G ${quoted}`));
    writeFileSync(path, "");
    await refuses(path, "EINVAL", new RegExp(`truncate -s 1G ${quoted}`));
    truncateSync(path, 700);
    await refuses(path, "EINVAL", new RegExp(`truncate -s 1024 ${quoted}`));
  });

  test("an image of a format and of an odd size is not to be filled up, but served by another", async () => {
    const path = image(Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(196612)]));
    await refuses(path, "EINVAL", /in qcow2 format.*qemu-nbd -t -f qcow2 -k \S+ \S+, then vbdkit/);
  });

  test("an image that we may not write, and one that we may not read", async () => {
    const path = image(4096);
    const script = `
      import { fileDriver } from ${source("store/drivers/file.ts")};
      import { Reactor } from ${source("io/reactor.ts")};
      if (process.getuid() === 0) {
        process.setgid(65534);
        process.setgroups([]);
        process.setuid(65534);
      }
      await fileDriver.open(
        { file: ${JSON.stringify(path)}, cache: "writeback", lock: true, shared: false },
        { reactor: new Reactor(), signal: new AbortController().signal, readOnly: false, engine: "libuv" })
        .catch((error) => console.log(error.code, error.message));`;
    chmodSync(onDisk, 0o755);
    for (const [mode, text] of [
      [0o444, `EROFS ${path} is not writable; serve it read-only with -r\n`],
      [0o000, `EACCES no permission to open ${path}\n`],
    ] as const) {
      chmodSync(path, mode);
      const { stdout } = await run(process.execPath, ["--input-type=module", "--eval", script], {
        env: { ...process.env, VBDKIT_NO_FFI: "1" },
      });
      assert.equal(stdout, text);
    }
  });

  test("parameters are checked by the table", () => {
    const parse = (texts: Record<string, string>) =>
      parseParameters("file", fileDriver.parameters, texts);
    assert.deepEqual(parse({ file: "x", cache: "none", lock: "off" }), {
      file: "x",
      cache: "none",
      lock: false,
      shared: false,
    });
    assert.throws(() => parse({}), /file needs file=FILE/);
    assert.throws(() => parse({ file: "x", cache: "most" }), /cache=most: write writeback or none/);
  });
});

describe("holes", { skip: without }, () => {
  for (const engine of engines) {
    for (const directory of [onDisk, inMemory]) {
      const where = directory === onDisk ? "a disk" : "tmpfs";
      test(`${engine} on ${where}: discard frees blocks, zeroes read as zeroes, and the size stays`, async () => {
        const path = image(Buffer.alloc(MIB, 0xaa), directory);
        await using disk = await Disk.open(path, engine);
        const blocks = () => statSync(path).blocks;
        assert.equal(await disk.do({ operation: Operation.flush }), 0);
        const full = blocks();
        const { discard, writeZeroes } = Operation;
        const half = 512 * KIB;
        assert.equal(await disk.do({ operation: discard, offset: 0, length: half }), 0);
        assert.equal(blocks(), full - half / 512);
        const { mayUnmap, mustBeFast, forceUnitAccess } = RequestFlag;
        const zero = (offset: number, length: number, flags: number) =>
          disk.do({ operation: writeZeroes, offset, length, flags });
        assert.equal(await zero(half, 64 * KIB, mayUnmap | mustBeFast | forceUnitAccess), 0);
        assert.equal(blocks(), full - (half + 64 * KIB) / 512);
        assert.equal(await zero(700_000, 33_333, 0), 0);
        assert.equal(await zero(900 * KIB, 124 * KIB, mustBeFast), 0);
        assert.equal(blocks(), full - (half + 64 * KIB) / 512, "blocks stay without mayUnmap");
        const model = Buffer.alloc(MIB, 0xaa).fill(0, 0, half + 64 * KIB);
        model.fill(0, 700_000, 733_333).fill(0, 900 * KIB, MIB);
        assert.ok((await disk.read(0, MIB)).equals(model));
        assert.equal(statSync(path).size, MIB);
      });
    }
  }

  test("long ranges are zeroed and given back in another thread, short ones at once", async () => {
    const bytes = Buffer.alloc(16 * MIB, 0xaa);
    await using disk = await Disk.open(image(bytes, inMemory), "pread");
    const { discard, writeZeroes } = Operation;
    const begin = (operation: Operation, offset: number, length: number) => {
      let ended = false;
      const status = disk.do({ operation, offset, length }).then((value) => {
        ended = true;
        return value;
      });
      return { status, ended: () => Promise.resolve().then(() => ended) };
    };
    const short = begin(discard, 0, 4096);
    assert.equal(await short.ended(), true);
    const long = [begin(writeZeroes, MIB, 4 * MIB), begin(discard, 8 * MIB, 4 * MIB)];
    for (const { ended } of long) assert.equal(await ended(), false);
    for (const { status } of long) assert.equal(await status, 0);
    bytes
      .fill(0, 0, 4096)
      .fill(0, MIB, 5 * MIB)
      .fill(0, 8 * MIB, 12 * MIB);
    assert.ok((await disk.read(0, bytes.length)).equals(bytes));
  });

  test("extents are those that qemu-img map sees", async () => {
    const path = image(8 * MIB);
    await using disk = await Disk.open(path);
    for (const start of [0, 3 * MIB, 3 * MIB + 8192, 7 * MIB + 4096]) {
      assert.equal(await disk.write(start, Buffer.alloc(4096, 1)), 0);
    }
    assert.equal(await disk.do({ operation: Operation.flush }), 0);
    const ours = await disk.extents();
    const { stdout } = await run("qemu-img", [
      ...["map", "-U", "--output=json", "--image-opts", `driver=raw,file.filename=${path}`],
    ]);
    const theirs = JSON.parse(stdout) as { start: number; length: number; data: boolean }[];
    assert.deepEqual(
      ours.map(({ offset, length, hole }) => ({ start: offset, length, data: !hole })),
      theirs.map(({ start, length, data }) => ({ start, length, data })),
    );
    assert.equal(ours.length, 8);
    const part = await all(disk.store.extents(MIB + 5, 2 * MIB));
    assert.deepEqual(part, [
      { offset: MIB + 5, length: 2 * MIB - 5, hole: true, zero: true },
      { offset: 3 * MIB, length: 5, hole: false, zero: false },
    ]);
  });

  test("extents outside the disk are refused, and a signal ends their listing", async () => {
    await using disk = await Disk.open(image(MIB));
    const list = (...range: [number, number, AbortSignal?]) => all(disk.store.extents(...range));
    await assert.rejects(list(0, 2 * MIB), { code: "EINVAL" });
    await assert.rejects(list(0, MIB, AbortSignal.abort()), { name: "AbortError" });
  });
});

describe("two users of one image", { skip: without }, () => {
  const qemuIo = (path: string, ...options: string[]) =>
    run("qemu-io", [...options, "-f", "raw", "-c", "read 0 512", path]).then(
      () => "done",
      (error: Error & { stderr: string; stdout: string }) => error.stderr + error.stdout,
    );

  test("while we write, QEMU may not, but may read", async () => {
    const path = image(MIB);
    await using _ = await Disk.open(path);
    assert.match(await qemuIo(path), /Failed to get "write" lock/);
    assert.equal(await qemuIo(path, "-r"), "done");
  });

  test("while QEMU writes, we may neither write nor read, unless told that it is shared", async () => {
    const path = image(MIB);
    const qemu = spawn("qemu-io", ["-f", "raw", path], { stdio: ["pipe", "pipe", "inherit"] });
    try {
      // It prompts once the image is open.
      await once(qemu.stdout, "data");
      const conflict = {
        code: "EBUSY",
        message: `${path} is in use: another process is writing it`,
      };
      await assert.rejects(Disk.open(path), conflict);
      await assert.rejects(Disk.open(path, "auto", { readOnly: true }), conflict);
      await using _ = await Disk.open(path, "auto", { readOnly: true, shared: true });
      await using __ = await Disk.open(path, "auto", { lock: false });
    } finally {
      qemu.stdin.end("quit\n");
      await once(qemu, "close");
    }
    await using _ = await Disk.open(path);
  });

  test("two writers exclude each other, readers do not, and closing frees the image", async () => {
    const path = image(MIB);
    {
      await using writer = await Disk.open(path);
      assert.equal(writer.store.info.shareable, false);
      const here = { code: "EBUSY", message: /in use: this process has it open already/ };
      await assert.rejects(Disk.open(path), here);
      await assert.rejects(Disk.open(path, "auto", { readOnly: true }), here);
    }
    await using reader = await Disk.open(path, "auto", { readOnly: true });
    await using _ = await Disk.open(path, "auto", { readOnly: true });
    assert.equal(reader.store.info.shareable, true);
    assert.match(await qemuIo(path), /Failed to get "write" lock/);
    assert.equal(await qemuIo(path, "-r"), "done");
  });
});

describe("resizing", () => {
  test("a file grows and shrinks, and listeners hear of it", async () => {
    const path = image(MIB);
    await using disk = await Disk.open(path);
    const sizes: number[] = [];
    using _ = disk.store.subscribe({ resized: ({ size }) => sizes.push(size) });
    await disk.store.resize(2 * MIB);
    assert.equal(await disk.write(2 * MIB - 512, Buffer.alloc(512, 5)), 0);
    const writing = disk.write(2 * MIB - 512, Buffer.alloc(512, 6));
    await disk.store.resize(512 * KIB);
    assert.equal(await writing, 0);
    assert.equal(statSync(path).size, 512 * KIB);
    assert.equal(await disk.write(512 * KIB, Buffer.alloc(512)), Errno.ENOSPC);
    assert.deepEqual(sizes, [2 * MIB, 512 * KIB]);
    for (const size of [0, -512, 1000, Number.NaN, 2 ** 60]) {
      await assert.rejects(disk.store.resize(size), { code: /EINVAL|EFBIG/ });
    }
  });

  test("a busy disk gets smaller in spite of those who never leave it alone", async () => {
    await using disk = await Disk.open(image(2 * MIB));
    const segments = new SegmentList(1);
    segments.add(allocateRegion(4096), 0, 4096);
    const fields = { operation: Operation.write, length: 4096, segments };
    let resized = false;
    let writes = 0;
    // Two at a time, so that there always is one in flight.
    const busy = async () => {
      while (!resized) {
        assert.equal(await disk.do(fields), 0);
        writes++;
      }
    };
    const both = Promise.all([busy(), busy()]);
    await disk.store.resize(MIB);
    resized = true;
    await both;
    assert.ok(writes > 0);
    assert.equal(disk.store.info.size, MIB);
  });

  test("what waits for a smaller size can be cancelled, and is told of it when done", async () => {
    const path = image(2 * MIB);
    await using disk = await Disk.open(path);
    const segments = new SegmentList(1);
    segments.add(allocateRegion(4096), 0, 4096);
    const write = (offset: number) =>
      disk.start({ operation: Operation.write, offset, length: 4096, segments });
    const before = write(2 * MIB - 4096);
    const resized = disk.store.resize(MIB);
    // The resize begins when its promise has its turn.
    await Promise.resolve();
    const cut = write(2 * MIB - 4096);
    const kept = write(0);
    disk.reactor.settle();
    assert.equal(await before, 0);
    await resized;
    assert.equal(await cut, Errno.ENOSPC);
    assert.equal(await kept, 0);
    assert.equal(statSync(path).size, MIB);

    const first = write(0);
    const again = disk.store.resize(MIB / 2);
    await Promise.resolve();
    const waiting = write(4096);
    await disk.store.cancel(new Error("the test wants it"));
    assert.ok([0, Errno.ECANCELED].includes(await first));
    assert.equal(await waiting, Errno.ECANCELED);
    await again;
    assert.equal(statSync(path).size, MIB / 2);
  });
});

test("without foreign calls a disk reads, writes and flushes, and offers neither holes nor locks", async () => {
  const path = image(Buffer.alloc(MIB, 9));
  const script = `
    import { subscribe } from "node:diagnostics_channel";
    import { BlockRequest, Operation, RequestFlag } from ${source("store/block-store.ts")};
    import { fileDriver } from ${source("store/drivers/file.ts")};
    import { allocateRegion, SegmentList } from ${source("io/memory.ts")};
    import { Reactor } from ${source("io/reactor.ts")};
    subscribe("vbdkit:note", ({ message }) => console.log(message));
    const reactor = new Reactor();
    const context = { reactor, signal: new AbortController().signal, readOnly: false, engine: "auto" };
    const options = { file: ${JSON.stringify(path)}, cache: "writeback", lock: true, shared: false };
    const store = await fileDriver.open(options, context);
    const region = allocateRegion(12288);
    region.bytes.fill(5, 0, 4096);
    const one = (operation, start, offset) => new Promise((resolve) => {
      const segments = new SegmentList(2);
      segments.add(region, start, 2048);
      segments.add(region, start + 2048, 2048);
      const request = new BlockRequest({ completed: (done) => resolve(done.status) });
      const flags = RequestFlag.forceUnitAccess;
      const length = operation === Operation.flush ? 0 : 4096;
      store.submit(Object.assign(request, { operation, flags, length, offset, segments }));
      reactor.settle();
    });
    console.log(await one(Operation.write, 0, 1000), await one(Operation.read, 8192, 3048),
      await one(Operation.flush, 0, 0), await one(Operation.cache, 0, 0), await one(Operation.discard, 0, 0));
    console.log(region.bytes[8192], region.bytes[10239], region.bytes[10240], region.bytes[12287]);
    console.log(store.info.engine, store.info.discard, [...store.info.native].join());
    await store[Symbol.asyncDispose]();
    await fileDriver.open({ ...options, cache: "none" }, context).catch((error) => console.log(error.code));`;
  const { stdout } = await run(process.execPath, ["--input-type=module", "--eval", script], {
    env: { ...process.env, VBDKIT_NO_FFI: "1" },
  });
  assert.deepEqual(stdout.split("\n"), [
    `${path} has neither locks nor holes: they need foreign calls, and VBDKIT_NO_FFI=1 turns them off`,
    `0 0 0 0 ${Errno.EOPNOTSUPP}`,
    "5 5 9 9",
    "libuv undefined flush,forceUnitAccess,cache",
    "EOPNOTSUPP",
    "",
  ]);
  assert.equal(readFileSync(path)[1000], 5);
});
