import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  decodeReply,
  decodeRequest,
  encodeChunkHeader,
  encodeRequest,
  encodeSimpleReply,
  NbdReply,
  NbdRequest,
  REQUEST_LENGTH,
  replyHeaderLength,
} from "../../src/wire/nbd.ts";
import {
  decodeGoOption,
  decodeInfo,
  decodeMetaContext,
  decodeMetaContextOption,
  decodeServer,
  encodeGoOption,
  encodeMetaContextOption,
  encodeServer,
} from "../../src/wire/nbd-options.ts";

const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffffffff);
const name = fc.string({ unit: "grapheme", maxLength: 40 }).filter((text) => !text.includes("\0"));

describe("the bytes of NBD", () => {
  test("a request is the 28 bytes of proto.md, and is read back", () => {
    const request = new NbdRequest();
    Object.assign(request, { flags: 1, type: 6, cookieHigh: 2, cookieLow: 3, length: 4096 });
    request.offset = 2 ** 40 + 5;
    const bytes = Buffer.alloc(REQUEST_LENGTH);
    encodeRequest(bytes, 0, request);
    const expected = "25609513 0001 0006 00000002 00000003 00000100 00000005 00001000";
    assert.equal(bytes.toString("hex"), expected.replaceAll(" ", ""));
    const fields = { flags: u16, type: u16, cookieHigh: u32, cookieLow: u32, length: u32 };
    fc.assert(
      fc.property(fc.record({ ...fields, offset: fc.maxSafeNat() }), (values) => {
        const read = new NbdRequest();
        encodeRequest(bytes, 0, Object.assign(new NbdRequest(), values));
        assert.ok(decodeRequest(bytes, 0, read));
        assert.deepEqual({ ...read }, { ...Object.assign(new NbdRequest(), values) });
      }),
    );
  });

  test("an offset of 2^53 or more stays above every size", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }), (offset) => {
        const bytes = Buffer.alloc(REQUEST_LENGTH);
        encodeRequest(bytes, 0, new NbdRequest());
        bytes.writeBigUInt64BE(offset, 16);
        const request = new NbdRequest();
        decodeRequest(bytes, 0, request);
        assert.ok(request.offset > Number.MAX_SAFE_INTEGER);
      }),
    );
  });

  test("replies of both kinds are told apart and read back", () => {
    const bytes = new Uint8Array(20);
    const reply = new NbdReply();
    encodeSimpleReply(bytes, 0, 7, 8, 22);
    assert.equal(replyHeaderLength(bytes, 0), 16);
    decodeReply(bytes, 0, reply);
    assert.deepEqual([reply.structured, reply.cookieHigh, reply.error], [false, 7, 22]);
    encodeChunkHeader(bytes, 0, 7, 0xfffffff8, 1, 0x8001, 6);
    assert.equal(replyHeaderLength(bytes, 0), 20);
    decodeReply(bytes, 0, reply);
    assert.deepEqual(
      [reply.structured, reply.cookieLow, reply.type, reply.length],
      [true, 0xfffffff8, 0x8001, 6],
    );
    assert.equal(replyHeaderLength(new Uint8Array(4), 0), 0);
  });

  test("options are read back as they were written, and never from half of their bytes", () => {
    fc.assert(
      fc.property(
        name,
        fc.array(u16, { maxLength: 5 }),
        fc.array(name, { maxLength: 4 }),
        (n, r, q) => {
          const go = encodeGoOption({ name: n, requests: r });
          assert.deepEqual(decodeGoOption(go), { name: n, requests: r });
          assert.equal(decodeGoOption(go.subarray(0, go.length - 1)), undefined);
          const meta = encodeMetaContextOption({ name: n, queries: q });
          assert.deepEqual(decodeMetaContextOption(meta), { name: n, queries: q });
          assert.equal(decodeMetaContextOption(meta.subarray(0, meta.length - 1)), undefined);
          const server = encodeServer(n, q.join(""));
          assert.deepEqual(decodeServer(server), { name: n, description: q.join("") });
        },
      ),
    );
  });

  test("no bytes make a decoder throw", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        decodeGoOption(bytes);
        decodeMetaContextOption(bytes);
        decodeInfo(bytes);
        decodeServer(bytes);
        decodeMetaContext(bytes);
      }),
    );
  });
});
