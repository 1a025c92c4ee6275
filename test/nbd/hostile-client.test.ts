import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  encodeOption,
  encodeRequest,
  NBD_CMD_DISC,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_LIST,
  NbdRequest,
  REQUEST_LENGTH,
} from "../../src/wire/nbd.ts";
import { encodeGoOption } from "../../src/wire/nbd-options.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { type Served, serve, succeed } from "./harness.ts";

const MiB = 1024 * 1024;
const FLAGS = Buffer.from([0, 0, 0, 3]);

function request(type: number, offset: number, length: number, cookie = 1): Uint8Array {
  const bytes = new Uint8Array(REQUEST_LENGTH);
  const header = new NbdRequest();
  header.type = type;
  header.offset = offset;
  header.length = length;
  header.cookieLow = cookie;
  encodeRequest(bytes, 0, header);
  return bytes;
}

/** A raw client; `closed` resolves when the server has hung up, also with bytes of ours unread. */
async function raw(served: Served): Promise<{ socket: Socket; closed: Promise<unknown> }> {
  const socket = connect(served.socket);
  socket.on("error", () => {});
  const closed = new Promise((resolve) => socket.once("close", resolve));
  await once(socket, "connect");
  return { socket, closed };
}

/** A raw client in transmission, of simple replies. */
async function transmitting(served: Served): Promise<{ socket: Socket; closed: Promise<unknown> }> {
  const client = await raw(served);
  client.socket.write(FLAGS);
  client.socket.write(encodeOption(NBD_OPT_EXPORT_NAME, new Uint8Array(0)));
  let got = 0;
  while (got < 28) got += ((await once(client.socket, "data")) as [Buffer])[0].length;
  return client;
}

async function settled(served: Served): Promise<void> {
  const deadline = Date.now() + 5000;
  while (served.server.counters.connections > 0) {
    assert.ok(Date.now() < deadline, "a connection stays behind");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function stillServes(served: Served): Promise<void> {
  assert.equal((await succeed("nbdinfo", "--size", served.uri)).trim(), "4194304");
}

describe("an NBD client that breaks the rules is disconnected and harms nobody", () => {
  test("in the handshake: noise, absurd lengths, unknown flags, endless options", async () => {
    await using served = await serve(4 * MiB);
    const absurd = Buffer.from(encodeOption(NBD_OPT_GO, new Uint8Array(0)));
    absurd.writeUInt32BE(0xffffffff, 12);
    const list = encodeOption(NBD_OPT_LIST, new Uint8Array(0));
    const attacks = [
      Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
      Buffer.from([0xff, 0xff, 0xff, 0xff]),
      Buffer.concat([FLAGS, Buffer.alloc(64, 0x41)]),
      Buffer.concat([FLAGS, absurd]),
      Buffer.concat([FLAGS, ...Array.from({ length: 300 }, () => list)]),
      Buffer.concat([FLAGS, encodeOption(NBD_OPT_EXPORT_NAME, Buffer.from("no such export"))]),
    ];
    for (const attack of attacks) {
      const { socket, closed } = await raw(served);
      socket.resume();
      socket.write(attack);
      await closed;
    }
    await settled(served);
    assert.equal(served.server.counters.failedHandshakes, attacks.length);
    await stillServes(served);
  });

  test("malformed options get an error, and the next may be right", async () => {
    await using served = await serve(4 * MiB);
    const { socket } = await raw(served);
    const chunks: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    const lying = Buffer.from(encodeGoOption({ name: "", requests: [] }));
    lying.writeUInt32BE(4000, 0);
    socket.write(
      Buffer.concat([
        FLAGS,
        encodeOption(NBD_OPT_GO, lying),
        encodeOption(NBD_OPT_GO, new Uint8Array(3)),
        encodeOption(77, Buffer.from("?")),
        encodeOption(NBD_OPT_GO, encodeGoOption({ name: "", requests: [] })),
        request(NBD_CMD_READ, 0, 512),
        request(NBD_CMD_DISC, 0, 0),
      ]),
    );
    await once(socket, "close");
    const bytes = Buffer.concat(chunks);
    assert.deepEqual(bytes.subarray(-512), Buffer.alloc(512));
    const errors = [0x80000003, 0x80000003, 0x80000001];
    let at = 18;
    for (const error of errors) {
      assert.equal(bytes.readUInt32BE(at + 12), error);
      at += 20 + bytes.readUInt32BE(at + 16);
    }
  });

  test("one that says nothing is dropped in time, and too many at once are refused", async () => {
    await using served = await serve(4 * MiB, { handshakeTimeout: 100, maxConnections: 3 });
    const silent = await Promise.all([raw(served), raw(served), raw(served)]);
    for (const { socket } of silent) socket.resume();
    const fourth = await raw(served);
    fourth.socket.resume();
    await fourth.closed;
    assert.equal(served.server.counters.refused, 1);
    await Promise.all(silent.map(({ closed }) => closed));
    await settled(served);
    assert.equal(served.server.counters.failedHandshakes, 3);
    await stillServes(served);
  });

  test("clients that ask nothing give way, the idlest first, when there is no room for another", async () => {
    const clock = new ManualClock();
    await using served = await serve(4 * MiB, { maxConnections: 3, clock });
    const clients = [await transmitting(served)];
    clock.pass(1000);
    clients.push(await transmitting(served), await transmitting(served));
    clock.pass(58_000);
    const early = await raw(served);
    early.socket.resume();
    await early.closed;
    assert.equal(served.server.counters.refused, 1, "nobody was idle for a minute");
    // The first one asks something, and is the last to go.
    clients[0]!.socket.write(request(NBD_CMD_READ, 0, 512));
    await once(clients[0]!.socket, "data");
    clock.pass(2000);
    for (const { socket } of clients) socket.resume();
    await stillServes(served);
    assert.ok(served.server.counters.gaveWay >= 1);
    await Promise.race([clients[1]!.closed, clients[2]!.closed]);
    const { socket } = clients[0]!;
    socket.write(request(NBD_CMD_READ, 0, 512));
    await once(socket, "data");
    for (const client of clients) client.socket.destroy();
    await settled(served);
    assert.equal(served.server.counters.refused, 1);
  });

  test("in transmission: no magic, a write of 4 GiB, a write cut short", async () => {
    await using served = await serve(4 * MiB);
    const noise = await transmitting(served);
    noise.socket.write(Buffer.alloc(28, 0x55));
    await noise.closed;
    const huge = await transmitting(served);
    huge.socket.write(request(NBD_CMD_WRITE, 0, 0xffffffff));
    await huge.closed;
    const cut = await transmitting(served);
    cut.socket.write(request(NBD_CMD_WRITE, 0, MiB));
    cut.socket.write(Buffer.alloc(500_000, 1));
    await new Promise((resolve) => setTimeout(resolve, 30));
    cut.socket.destroy();
    await settled(served);
    assert.ok(served.store.bytes.every((byte) => byte === 0));
    await stillServes(served);
  });

  test("a write that is refused is read to its end, and the next request is found", async () => {
    await using served = await serve(4 * MiB);
    const { socket } = await transmitting(served);
    const chunks: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.write(request(NBD_CMD_WRITE, 4 * MiB, 300_000, 1));
    socket.write(Buffer.alloc(300_000, 0x25));
    socket.write(request(NBD_CMD_WRITE, 3, 0, 2));
    socket.write(request(99, 0, 0, 3));
    socket.write(request(NBD_CMD_READ, 2 ** 53, 512, 4));
    socket.write(request(NBD_CMD_DISC, 0, 0));
    await once(socket, "close");
    const bytes = Buffer.concat(chunks);
    assert.equal(bytes.length, 4 * 16);
    const answers = [0, 1, 2, 3].map((i) => [
      bytes.readUInt32BE(i * 16 + 12),
      bytes.readUInt32BE(i * 16 + 4),
    ]);
    // Cookies and errors; refusals may overtake one another, but here nothing was in flight.
    assert.deepEqual(answers, [
      [1, 28],
      [2, 22],
      [3, 22],
      [4, 22],
    ]);
  });

  test("one that vanishes with requests in the store leaves when they are done", async () => {
    await using served = await serve(4 * MiB);
    served.store.hold = true;
    const { socket } = await transmitting(served);
    for (let i = 0; i < 100; i++) socket.write(request(NBD_CMD_READ, i * 4096, 4096, i));
    socket.write(request(NBD_CMD_WRITE, 0, 4096, 100));
    socket.write(Buffer.alloc(4096, 7));
    while (served.store.heldCount < 101) await new Promise((resolve) => setTimeout(resolve, 5));
    socket.destroy();
    await new Promise((resolve) => setTimeout(resolve, 30));
    assert.equal(served.server.counters.connections, 1);
    served.store.release();
    await settled(served);
    assert.equal(served.store.bytes[0], 7);
    await stillServes(served);
  });

  test("one that asks for everything and reads nothing waits alone", async () => {
    await using served = await serve(4 * MiB);
    served.store.bytes.fill(1);
    const { socket } = await transmitting(served);
    socket.pause();
    const batch = Buffer.concat(
      Array.from({ length: 2000 }, (_, i) => request(NBD_CMD_READ, 0, 4 * MiB, i)),
    );
    socket.write(batch);
    await new Promise((resolve) => setTimeout(resolve, 100));
    // 64 MiB of payload at most are held for it, whatever it asks for.
    const reads = served.store.seen.filter(({ length }) => length === 4 * MiB).length;
    assert.ok(reads >= 8 && reads <= 20, `${reads} reads of 4 MiB`);
    await stillServes(served);
    let received = 0;
    const wanted = 40 * (4 * MiB + 16);
    socket.on("data", (chunk: Buffer) => {
      received += chunk.length;
      if (received >= wanted) socket.destroy();
    });
    socket.resume();
    await once(socket, "close");
    assert.ok(received >= wanted);
    await settled(served);
  });

  test("any bytes at all, in the handshake or after it", async () => {
    await using served = await serve(4 * MiB, { handshakeTimeout: 50 });
    const pieces = fc.array(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }),
        fc
          .record({ type: fc.nat(9), offset: fc.maxSafeNat(), length: fc.nat(70_000) })
          .map(({ type, offset, length }) => request(type, offset % (5 * MiB), length)),
        fc
          .record({ option: fc.nat(12), data: fc.uint8Array({ maxLength: 60 }) })
          .map(({ option, data }) => encodeOption(option, data)),
      ),
      { maxLength: 12 },
    );
    await fc.assert(
      fc.asyncProperty(fc.boolean(), pieces, async (transmission, parts) => {
        const { socket, closed } = await (transmission ? transmitting(served) : raw(served));
        socket.resume();
        for (const part of parts) socket.write(part);
        socket.end();
        await closed;
      }),
      { numRuns: 60 },
    );
    await settled(served);
    await stillServes(served);
  });
});
