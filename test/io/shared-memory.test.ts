/** Memory between processes, and what wakes them. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ffi, ffiMissingReason, systemError } from "../../src/io/ffi.ts";
import { allocateRegion } from "../../src/io/memory.ts";
import { EventDescriptor, watchReadable } from "../../src/io/poller.ts";
import { createSharedMemory, openSharedMemory } from "../../src/io/shared-memory.ts";

const without = ffiMissingReason();

test("a region that we allocate is zeroed, shareable with a worker and of the length asked for", () => {
  using region = allocateRegion(10_000);
  assert.equal(region.bytes.length, 10_000);
  assert.ok(region.bytes.buffer instanceof SharedArrayBuffer);
  assert.ok(region.bytes.every((byte) => byte === 0));
  assert.equal(region.address % 4096, 0);
  assert.equal(region.address > 0, ffi() !== undefined);
});

test("an error of the system names the call, the subject and the errno", () => {
  const error = systemError("open", 13, "/x");
  assert.equal(error.code, "EACCES");
  assert.match(error.message, /^EACCES: permission denied, open \/x$/);
});

describe("memory shared between processes", { skip: without ?? false }, () => {
  test("two mappings of one memory see each other's bytes", () => {
    const mine = createSharedMemory("vbdkit-test", 8192);
    const theirs = openSharedMemory(`/proc/${process.pid}/fd/${mine.descriptor}`);
    using first = mine.region;
    using second = theirs.region;
    first.bytes[5000] = 42;
    assert.equal(second.bytes.length, 8192);
    assert.equal(second.bytes[5000], 42);
    Atomics.store(new Int32Array(second.bytes.buffer), 1, 7);
    assert.equal(Atomics.load(new Int32Array(first.bytes.buffer), 1), 7);
    assert.notEqual(first.address, second.address);
  });

  test("shared memory can neither shrink nor grow", () => {
    const { region, descriptor } = createSharedMemory("vbdkit-test", 4096);
    using _ = region;
    assert.equal(ffi()!.ftruncate(descriptor, 0), -1);
    assert.equal(ffi()!.ftruncate(descriptor, 8192), -1);
  });

  test("memory that another could truncate under us is refused", () => {
    const directory = mkdtempSync(join(tmpdir(), "vbdkit-"));
    const calls = ffi()!;
    const unsealed = calls.memfdCreate("vbdkit-test", 3);
    try {
      calls.ftruncate(unsealed, 4096);
      const file = join(directory, "plain");
      writeFileSync(file, Buffer.alloc(4096));
      for (const source of [unsealed, file, "/dev/null"]) {
        assert.throws(() => openSharedMemory(source), /is not a memfd sealed against shrinking/);
      }
      assert.throws(() => openSharedMemory("/proc/self/fd/99999"), { code: "ENOENT" });
    } finally {
      process.getBuiltinModule("node:fs").closeSync(unsealed);
      rmSync(directory, { recursive: true });
    }
  });

  test("more memory than expected is refused", () => {
    const { region, descriptor } = createSharedMemory("vbdkit-test", 8192);
    using _ = region;
    assert.throws(() => openSharedMemory(descriptor, 4096), /8192 bytes, more than the 4096/);
  });

  test("disposal unmaps the memory and closes its descriptor", () => {
    const maps = () => readFileSync("/proc/self/maps", "latin1").split("vbdkit-unmapped").length;
    const before = maps();
    const { region, descriptor } = createSharedMemory("vbdkit-unmapped", 4096);
    assert.equal(maps(), before + 1);
    region[Symbol.dispose]();
    region[Symbol.dispose]();
    assert.equal(maps(), before);
    assert.throws(() => openSharedMemory(descriptor), { code: "ENOENT" });
  });
});

describe("descriptors that wake the event loop", { skip: without ?? false }, () => {
  test("an event descriptor wakes its watcher, once per raising", async () => {
    using event = new EventDescriptor();
    const woken = Promise.withResolvers<void>();
    let times = 0;
    using _ = watchReadable(event.descriptor, () => {
      times++;
      assert.equal(event.drain(), true);
      woken.resolve();
    });
    event.signal();
    event.signal();
    await woken.promise;
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(times, 1);
    assert.equal(event.drain(), false);
  });

  test("a promise that a watcher resolves goes on, though nothing else happens in the process", async () => {
    const script = `
      import { EventDescriptor, watchReadable } from ${JSON.stringify(import.meta.resolve("../../src/io/poller.ts"))};
      const event = new EventDescriptor();
      for (let i = 0; i < 20; i++) {
        const { promise, resolve } = Promise.withResolvers();
        const watcher = watchReadable(event.descriptor, () => { event.drain(); resolve(); });
        setImmediate(() => event.signal());
        await promise;
        watcher[Symbol.dispose]();
      }
      console.log("done");`;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
      stdio: ["ignore", "pipe", "inherit"],
      timeout: 5000,
    });
    const [text] = await once(child.stdout, "data");
    assert.equal(String(text), "done\n");
    await once(child, "close");
  });

  test("a watcher lives through garbage collection and does not wake after its disposal", async () => {
    const script = `
      import { EventDescriptor, watchReadable } from ${JSON.stringify(import.meta.resolve("../../src/io/poller.ts"))};
      const event = new EventDescriptor();
      const watcher = watchReadable(event.descriptor, () => {
        event.drain();
        console.log("woken");
        watcher[Symbol.dispose]();
        event.signal();
      });
      for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 2)); }
      event.signal();`;
    const child: ChildProcess = spawn(
      process.execPath,
      ["--expose-gc", "--input-type=module", "--eval", script],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    let text = "";
    child.stdout!.on("data", (bytes: Buffer) => {
      text += bytes;
    });
    const [code] = await once(child, "close");
    assert.equal(code, 0);
    assert.equal(text, "woken\n");
  });

  test("a worker that exits with a watcher on a readable descriptor takes nobody along", async () => {
    const script = `
      import { Worker } from "node:worker_threads";
      const worker = new Worker(\`
        import(${JSON.stringify(import.meta.resolve("../../src/io/poller.ts"))}).then(({ EventDescriptor, watchReadable }) => {
          const event = new EventDescriptor();
          watchReadable(event.descriptor, () => {}).unref();
          event.signal();
          setTimeout(() => process.exit(0), 20);
        });\`, { eval: true });
      worker.on("exit", (code) => console.log("worker", code));`;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let text = "";
    child.stdout.on("data", (bytes: Buffer) => {
      text += bytes;
    });
    const [code] = await once(child, "close");
    assert.deepEqual([code, text], [0, "worker 0\n"]);
  });

  test("a second watcher of one descriptor is our own bug, and a file cannot be watched", () => {
    using event = new EventDescriptor();
    using _ = watchReadable(event.descriptor, () => {});
    assert.throws(() => watchReadable(event.descriptor, () => {}), /watched already/);
  });
});
