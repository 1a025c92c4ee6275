import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { Reactor } from "../../src/io/reactor.ts";
import { type NbdStore, openNbdStore } from "../../src/nbd/index.ts";
import { type Extent, Operation, RequestFlag } from "../../src/store/block-store.ts";
import { Errno, StoreError } from "../../src/store/errors.ts";
import { perform, serve, startNbdkit, startServer, succeed, temporaryFolder } from "./harness.ts";

const MiB = 1024 * 1024;

async function open(uri: string, connections = 1): Promise<{ store: NbdStore; reactor: Reactor }> {
  const reactor = new Reactor();
  return { store: await openNbdStore({ reactor, uri, connections }), reactor };
}

async function allExtents(store: NbdStore, offset: number, length: number): Promise<Extent[]> {
  const extents: Extent[] = [];
  for await (const extent of store.extents(offset, length)) extents.push(extent);
  return extents;
}

/** Writes, reads back in odd pieces, zeroes, trims, flushes: on any server that allows all of it. */
async function exercise(store: NbdStore, reactor: Reactor): Promise<void> {
  const data = new Uint8Array(randomBytes(MiB + 8192));
  const written = await perform(store, reactor, Operation.write, 4096, data.length, {
    data,
    flags: store.info.native.has("forceUnitAccess") ? RequestFlag.forceUnitAccess : 0,
    pieces: 7,
  });
  assert.equal(written.status, 0);
  const read = await perform(store, reactor, Operation.read, 4096, data.length, { pieces: 5 });
  assert.equal(read.status, 0);
  assert.deepEqual(read.data, data);
  const many = await Promise.all(
    Array.from({ length: 300 }, (_, i) =>
      perform(store, reactor, Operation.read, 4096 + i * 512, 4096),
    ),
  );
  for (const [i, { status, data: piece }] of many.entries()) {
    assert.equal(status, 0);
    assert.deepEqual(piece, data.subarray(i * 512, i * 512 + 4096));
  }
  if (store.info.native.has("writeZeroes")) {
    const flags = RequestFlag.mayUnmap;
    const zeroed = await perform(store, reactor, Operation.writeZeroes, 8192, 65536, { flags });
    assert.equal(zeroed.status, 0);
    const after = await perform(store, reactor, Operation.read, 4096, 81920, { pieces: 3 });
    data.fill(0, 4096, 4096 + 65536);
    assert.deepEqual(after.data, data.subarray(0, 81920));
  }
  if (store.info.discard !== undefined) {
    assert.equal((await perform(store, reactor, Operation.discard, 0, MiB)).status, 0);
  }
  assert.equal((await perform(store, reactor, Operation.flush, 0, 0)).status, 0);
}

describe("the NBD client", () => {
  test("closes its connection in a worker without a warning", async () => {
    await using served = await serve(MiB);
    const worker = new Worker(new URL("client-worker.ts", import.meta.url), {
      workerData: served.uri,
      stderr: true,
    });
    assert.deepEqual(await once(worker, "message"), [[]]);
    await worker.terminate();
  });

  test("works against our own server, over one connection and over four", async () => {
    await using served = await serve(8 * MiB);
    for (const connections of [1, 4]) {
      const { store, reactor } = await open(served.uri, connections);
      assert.equal(store.connectionCount, connections);
      assert.equal(store.info.size, 8 * MiB);
      await exercise(store, reactor);
      await store[Symbol.asyncDispose]();
    }
  });

  test("works against nbdkit's memory, with and without structured replies", async () => {
    for (const extra of [[], ["--no-sr"]]) {
      await using folder = await temporaryFolder();
      await using server = await startNbdkit(folder, ...extra, "memory", "8M");
      const { store, reactor } = await open(server.uri, 2);
      await exercise(store, reactor);
      await store[Symbol.asyncDispose]();
    }
  });

  test("reads the same map of a qcow2 behind qemu-nbd as nbdinfo does", async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("disk.qcow2");
    await succeed("qemu-img", "create", "-q", "-f", "qcow2", image, "64M");
    await succeed("qemu-io", "-f", "qcow2", "-c", "write 1M 2M", "-c", "write -z 9M 1M", image);
    const socket = folder.file("qemu.sock");
    await using server = await startServer(
      socket,
      ...(["qemu-nbd", "-t", "-e", "4", "-f", "qcow2", "-k", socket, image] as const),
    );
    const { store, reactor } = await open(server.uri);
    const ours = (await allExtents(store, 0, store.info.size)).map((extent) => ({
      offset: extent.offset,
      length: extent.length,
      type: (extent.hole ? 1 : 0) | (extent.zero ? 2 : 0),
    }));
    const theirs = JSON.parse(await succeed("nbdinfo", "--map", "--json", server.uri));
    assert.deepEqual(
      ours,
      theirs.map(({ offset, length, type }: Record<string, number>) => ({ offset, length, type })),
    );
    await exercise(store, reactor);
    await store[Symbol.asyncDispose]();
  });

  test("serves what it reads from nbdkit's pattern, across many connections' replies", async () => {
    await using folder = await temporaryFolder();
    await using server = await startNbdkit(folder, "pattern", "1G");
    const { store, reactor } = await open(server.uri, 4);
    assert.equal(store.info.readOnly, true);
    const reads = Array.from({ length: 64 }, async (_, i) => {
      const offset = i * 15 * MiB + 4096;
      const { status, data } = await perform(store, reactor, Operation.read, offset, 16384);
      assert.equal(status, 0);
      const view = new DataView(data.buffer);
      for (let at = 0; at < 16384; at += 8) {
        assert.equal(Number(view.getBigUint64(at)), offset + at);
      }
    });
    await Promise.all(reads);
    const write = await perform(store, reactor, Operation.write, 0, 512);
    assert.equal(write.status, Errno.EROFS);
    await store[Symbol.asyncDispose]();
  });

  test("passes on the errors that the server answers", async () => {
    await using folder = await temporaryFolder();
    await using server = await startNbdkit(
      folder,
      "--filter=error",
      "memory",
      "1M",
      ...["error-pread=ENOSPC", "error-pread-rate=100%", "error-pwrite=EIO"],
      ...["error-pwrite-rate=100%"],
    );
    const { store, reactor } = await open(server.uri);
    const read = await perform(store, reactor, Operation.read, 0, 4096);
    assert.equal(read.status, Errno.ENOSPC);
    const write = await perform(store, reactor, Operation.write, 0, 65536);
    assert.equal(write.status, Errno.EIO);
    await store[Symbol.asyncDispose]();
  });

  test("waits for a slow server when it is disposed", async () => {
    await using folder = await temporaryFolder();
    await using server = await startNbdkit(
      folder,
      ...["--filter=delay", "memory", "1M", "rdelay=200ms"],
    );
    const { store, reactor } = await open(server.uri);
    const read = perform(store, reactor, Operation.read, 0, 4096);
    await store[Symbol.asyncDispose]();
    assert.equal((await read).status, 0);
    const late = await perform(store, reactor, Operation.read, 0, 4096);
    assert.equal(late.status, Errno.ESHUTDOWN);
  });

  test("fails every request and says so once when the server dies", async () => {
    await using folder = await temporaryFolder();
    await using server = await startNbdkit(
      folder,
      ...["--filter=delay", "memory", "1M", "rdelay=30"],
    );
    const { store, reactor } = await open(server.uri, 2);
    const failures: Error[] = [];
    store.subscribe({ failed: (error) => failures.push(error) });
    const reads = Array.from({ length: 300 }, (_, i) =>
      perform(store, reactor, Operation.read, i * 512, 512),
    );
    await new Promise((resolve) => setTimeout(resolve, 50));
    await server.kill();
    for (const { status } of await Promise.all(reads)) assert.equal(status, Errno.ECONNRESET);
    assert.equal(failures.length, 1);
    assert.match(failures[0]!.message, /nbdkit\.sock: the server is gone/);
    const late = await perform(store, reactor, Operation.read, 0, 512);
    assert.equal(late.status, Errno.ECONNRESET);
    await assert.rejects(allExtents(store, 0, 4096), StoreError);
    await store[Symbol.asyncDispose]();
  });

  test("names the URI in one line when it cannot connect", async () => {
    await using folder = await temporaryFolder();
    const reactor = new Reactor();
    const uri = `nbd+unix:///?socket=${folder.file("none")}`;
    await assert.rejects(openNbdStore({ reactor, uri }), (error: StoreError) => {
      assert.equal(error.code, "ENOENT");
      assert.ok(error.message.startsWith(`${uri}: `), error.message);
      assert.ok(!error.message.includes("\n"));
      return true;
    });
    await using server = await startNbdkit(folder, "memory", "1M");
    const aborted = AbortSignal.abort();
    await assert.rejects(openNbdStore({ reactor, uri: server.uri, signal: aborted }), {
      code: "ECANCELED",
    });
    await writeFile(folder.file("plain"), "");
    await assert.rejects(
      openNbdStore({ reactor, uri: `nbd+unix:///?socket=${folder.file("plain")}` }),
      { code: "ECONNREFUSED" },
    );
  });

  test("is told by the server which exports there are not", async () => {
    await using served = await serve(MiB);
    const reactor = new Reactor();
    const uri = `nbd+unix:///missing?socket=${served.socket}`;
    await assert.rejects(openNbdStore({ reactor, uri }), { code: "ENOENT" });
  });
});
