/** cache=none: one way to the bytes of an image, past the page cache, for whoever writes them how ever they lie. */
import assert from "node:assert/strict";
import {
  constants,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { ffiMissingReason } from "../../src/io/ffi.ts";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { BlockRequest, type BlockStore, Operation } from "../../src/store/block-store.ts";
import { Disk } from "../../src/store/disk.ts";
import { Errno } from "../../src/store/errors.ts";
import { openStore } from "../../src/store/registry.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const without = ffiMissingReason() ?? false;
const reactor = new Reactor();
const folders = [
  mkdtempSync(join(tmpdir(), "vbdkit-direct-")),
  mkdtempSync("/dev/shm/vbdkit-direct-"),
];
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

let images = 0;
function image(folder: string, bytes: number): string {
  const path = join(folder, `${images++}.img`);
  writeFileSync(path, "");
  truncateSync(path, bytes);
  return path;
}

function open(file: string): Promise<BlockStore> {
  return openStore(
    { driver: "file", parameters: { file, cache: "none" }, filters: [] },
    { reactor },
  );
}

for (const folder of folders) {
  describe(`in ${folder.slice(0, 5)}`, { skip: without }, () => {
    test("blocks are the kernel's, and every descriptor of the image is O_DIRECT", async () => {
      const path = image(folder, MIB);
      await using store = await open(path);
      const { block, native } = store.info;
      assert.ok(block.minimum >= 512 && block.minimum <= 4096, `${block.minimum}`);
      assert.ok(!native.has("cache"));
      const flags = readdirSync("/proc/self/fd").flatMap((name) => {
        try {
          if (readlinkSync(`/proc/self/fd/${name}`) !== path) return [];
          const text = readFileSync(`/proc/self/fdinfo/${name}`, "latin1");
          return [Number.parseInt(/^flags:\s*(\d+)/m.exec(text)![1]!, 8)];
        } catch {
          return [];
        }
      });
      assert.equal(flags.length, 1);
      assert.ok((flags[0]! & constants.O_DIRECT) !== 0);
    });

    test("writes at once of disjoint bytes of a page are all there, and the disk can be flushed", async () => {
      const pages = 64;
      const path = image(folder, pages * 4096);
      await using disk = new Disk(await open(path), reactor);
      for (let round = 1; round <= 60; round++) {
        const value = (round % 255) + 1;
        const changes: Promise<void>[] = [];
        const put = (offset: number, length: number) =>
          changes.push(disk.write(offset, new Uint8Array(length).fill(value)));
        for (let page = 0; page < pages; page++) {
          put(page * 4096 + 3495, 100);
          put(page * 4096, 512);
          put(page * 4096 + 519, 100);
          changes.push(disk.writeZeroes(page * 4096 + 1024, 1024));
        }
        await Promise.all(changes);
        if (round % 7 === 0) await disk.flush();
        const bytes = await disk.read(0, pages * 4096);
        for (let page = 0; page < pages; page++) {
          for (const at of [0, 511, 519, 618, 3495, 3594]) {
            assert.equal(
              bytes[page * 4096 + at],
              value,
              `round ${round}, page ${page}, byte ${at}`,
            );
          }
          assert.equal(bytes[page * 4096 + 2047], 0);
        }
      }
      await disk.flush();
    });

    test("more memory that lies badly than the pool holds is written and read in turns", async () => {
      const count = 300;
      const length = 64 * KIB;
      const path = image(folder, count * length);
      await using store = await open(path);
      const runner = new Runner(store);
      const lists: SegmentList[] = [];
      for (let i = 0; i < count; i++) {
        const list = new SegmentList(2);
        const region = allocateRegion(length + 64);
        region.bytes.fill(1 + (i % 255));
        list.add(region, 1, 1000);
        list.add(region, 1007, length - 1000);
        lists.push(list);
      }
      const all = (operation: Operation) =>
        Promise.all(
          lists.map((segments, i) =>
            runner.start({ operation, offset: i * length, length, segments }),
          ),
        );
      assert.deepEqual(new Set(await all(Operation.write)), new Set([0]));
      for (const list of lists) list.regions[0]!.bytes.fill(0);
      assert.deepEqual(new Set(await all(Operation.read)), new Set([0]));
      for (const [i, list] of lists.entries()) {
        const { bytes } = list.regions[0]!;
        for (const at of [1, 1000, 1007, length + 6]) assert.equal(bytes[at], 1 + (i % 255));
        for (const at of [0, 1001, 1006, length + 7]) assert.equal(bytes[at], 0);
      }
      const statuses = all(Operation.read);
      await store.cancel(new Error("the test wants it"));
      for (const status of await statuses) assert.ok([0, Errno.ECANCELED].includes(status));
      assert.equal((await all(Operation.read))[0], 0);
    });

    test("a size that is not whole blocks is refused, or not changed to", async () => {
      const path = image(folder, MIB);
      await using store = await open(path);
      const { minimum } = store.info.block;
      await assert.rejects(store.resize(MIB + minimum / 2), { code: "EINVAL" });
      await store.resize(MIB + minimum);
      assert.equal(store.info.size, MIB + minimum);
      if (minimum > 512) {
        const message = /blocks of \d+ bytes, which cache=none needs; .*truncate -s 1052672 /;
        await assert.rejects(open(image(folder, MIB + 512)), { code: "EINVAL", message });
      }
    });
  });
}

class Runner {
  readonly #store: BlockStore;
  readonly #ends = new Map<BlockRequest, (status: number) => void>();

  constructor(store: BlockStore) {
    this.#store = store;
  }

  start(fields: Partial<BlockRequest>): Promise<number> {
    return new Promise((resolve) => {
      const request = Object.assign(new BlockRequest(this), fields);
      this.#ends.set(request, resolve);
      this.#store.submit(request);
      reactor.soon();
    });
  }

  completed(request: BlockRequest): void {
    this.#ends.get(request)!(request.status);
    this.#ends.delete(request);
  }
}
