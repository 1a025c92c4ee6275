import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { describe, test } from "node:test";
import fc from "fast-check";
import { Reactor } from "../../src/io/reactor.ts";
import { openNbdStore } from "../../src/nbd/index.ts";
import { Operation } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import {
  decodeRequest,
  encodeChunkHeader,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  NBD_CMD_READ,
  NBD_INFO_EXPORT,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NbdRequest,
} from "../../src/wire/nbd.ts";
import { encodeInfo } from "../../src/wire/nbd-options.ts";
import { perform, temporaryFolder } from "./harness.ts";

const MiB = 1024 * 1024;
const NONE = new Uint8Array(0);

/** A server that does the handshake well and answers the first request as `answer` says. */
async function withServer(
  answer: (request: NbdRequest, socket: Socket) => Uint8Array,
  structured: boolean,
  body: (uri: string) => Promise<void>,
): Promise<void> {
  await using folder = await temporaryFolder();
  const path = folder.file("s");
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.write(encodeGreeting(3));
    let input = Buffer.alloc(0);
    let flags = true;
    let transmission = false;
    socket.on("data", (chunk: Buffer) => {
      input = Buffer.concat([input, chunk]);
      if (flags && input.length >= 4) {
        input = input.subarray(4);
        flags = false;
      }
      while (!flags && !transmission && input.length >= 16) {
        const option = input.readUInt32BE(8);
        input = input.subarray(16 + input.readUInt32BE(12));
        if (option === NBD_OPT_GO) {
          const info = encodeInfo({ type: NBD_INFO_EXPORT, size: MiB, flags: 1 });
          socket.write(encodeOptionReply(option, NBD_REP_INFO, info));
          socket.write(encodeOptionReply(option, NBD_REP_ACK, NONE));
          transmission = true;
        } else {
          const known = option === NBD_OPT_STRUCTURED_REPLY || option === NBD_OPT_SET_META_CONTEXT;
          const type = known && structured ? NBD_REP_ACK : NBD_REP_ERR_UNSUP;
          socket.write(encodeOptionReply(option, type, NONE));
        }
      }
      const request = new NbdRequest();
      if (transmission && input.length >= 28 && decodeRequest(input, 0, request)) {
        input = input.subarray(28);
        if (request.type === NBD_CMD_READ) socket.write(answer(request, socket));
      }
    });
  }).listen(path);
  await once(server, "listening");
  try {
    await body(`nbd+unix:///?socket=${path}`);
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
}

function simple(high: number, low: number, error: number, payload: Uint8Array = NONE): Uint8Array {
  const bytes = new Uint8Array(16 + payload.length);
  encodeSimpleReply(bytes, 0, high, low, error);
  bytes.set(payload, 16);
  return bytes;
}

/** A chunk for the request; `position` begins the payload where it is given. */
function chunk(
  request: NbdRequest,
  flags: number,
  type: number,
  length: number,
  position?: number,
): Uint8Array {
  const bytes = new Uint8Array(20 + (position === undefined ? 0 : Math.max(8, length)));
  encodeChunkHeader(bytes, 0, request.cookieHigh, request.cookieLow, flags, type, length);
  if (position !== undefined) new DataView(bytes.buffer).setBigUint64(20, BigInt(position));
  return bytes;
}

async function readStatus(uri: string): Promise<number> {
  const reactor = new Reactor();
  const store = await openNbdStore({ reactor, uri });
  const failures: Error[] = [];
  store.subscribe({ failed: (error) => failures.push(error) });
  const { status, data } = await perform(store, reactor, Operation.read, 4096, 8192);
  if (status === 0) assert.ok(data.every((byte) => byte === 0));
  assert.equal(failures.length, status === Errno.EPROTO || status === Errno.ECONNRESET ? 1 : 0);
  await store[Symbol.asyncDispose]();
  return status;
}

describe("an NBD server that breaks the rules costs its client the connection, no more", () => {
  const structuredLies: [string, (request: NbdRequest) => Uint8Array][] = [
    ["no magic", () => new Uint8Array(32)],
    ["an unknown cookie", (r) => simple(r.cookieHigh, r.cookieLow + 1, 0)],
    ["a cookie beyond every slot", (r) => simple(r.cookieHigh, 0xfffffff0, 0)],
    ["a cookie of before", (r) => simple(r.cookieHigh + 1, r.cookieLow, 0)],
    ["a simple reply to a structured read", (r) => simple(r.cookieHigh, r.cookieLow, 0)],
    ["data before the range", (r) => chunk(r, 1, 1, 8 + 512, 0)],
    ["data beyond the range", (r) => chunk(r, 1, 1, 8 + 8192, 8192)],
    ["data of absurd length", (r) => chunk(r, 1, 1, 0xfffffff0)],
    ["a chunk too short for its kind", (r) => chunk(r, 1, 1, 4)],
    ["a chunk of no known kind", (r) => chunk(r, 1, 9, 0)],
    ["an end without data", (r) => chunk(r, 1, 0, 0)],
    ["extents for a read", (r) => chunk(r, 1, 5, 12)],
    ["too little data", (r) => chunk(r, 1, 1, 8 + 512, 4096)],
    [
      "the same data twice",
      (r) => Buffer.concat([chunk(r, 0, 1, 8 + 8192, 4096), chunk(r, 1, 1, 8 + 8192, 4096)]),
    ],
  ];
  for (const [name, answer] of structuredLies) {
    test(`by ${name}`, async () => {
      await withServer(answer, true, async (uri) => {
        assert.equal(await readStatus(uri), Errno.EPROTO);
      });
    });
  }

  test("by a structured reply nobody agreed on", async () => {
    const answer = (request: NbdRequest) => chunk(request, 1, 1, 8 + 8192, 4096);
    await withServer(answer, false, async (uri) => {
      assert.equal(await readStatus(uri), Errno.EPROTO);
    });
  });

  test("pieces may come in any order; an overlap that hides a gap shows zeroes, not old memory", async () => {
    const answer = (r: NbdRequest) =>
      Buffer.concat([chunk(r, 0, 1, 8 + 4096, 8192), chunk(r, 1, 1, 8 + 4096, 4096)]);
    await withServer(answer, true, async (uri) => assert.equal(await readStatus(uri), 0));
    const overlap = (r: NbdRequest) =>
      Buffer.concat([chunk(r, 0, 1, 8 + 4096, 8192), chunk(r, 1, 1, 8 + 4096, 8192)]);
    await withServer(overlap, true, async (uri) => assert.equal(await readStatus(uri), 0));
  });

  test("an error reply is an errno; one in the middle of a structured reply too", async () => {
    const plain = (r: NbdRequest) => simple(r.cookieHigh, r.cookieLow, 28);
    await withServer(plain, false, async (uri) => {
      assert.equal(await readStatus(uri), Errno.ENOSPC);
    });
    const error = (r: NbdRequest) => {
      const bytes = Buffer.concat([chunk(r, 1, 0x8001, 10), Buffer.alloc(10)]);
      bytes.writeUInt32BE(5, 20);
      return Buffer.concat([chunk(r, 0, 1, 8 + 512, 4096), bytes]);
    };
    await withServer(error, true, async (uri) => assert.equal(await readStatus(uri), Errno.EIO));
  });

  test("by any bytes at all", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 64 }), async (bytes) => {
        const answer = (_: NbdRequest, socket: Socket) => {
          setTimeout(() => socket.destroy(), 2);
          return bytes;
        };
        await withServer(answer, true, async (uri) => {
          assert.ok([Errno.EPROTO, Errno.ECONNRESET].includes((await readStatus(uri)) as 71));
        });
      }),
      { numRuns: 30 },
    );
  });
});
