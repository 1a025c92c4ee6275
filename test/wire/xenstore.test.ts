import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  decodeXenStoreStrings,
  encodeXenStoreMessage,
  encodeXenStoreStrings,
  XENSTORE_PAYLOAD_MAX,
  type XenStoreMessage,
  XenStoreParser,
  XS_DIRECTORY_PART,
  XS_READ,
  XSD_ERRORS,
} from "../../src/wire/xenstore.ts";

const messages = fc.array(
  fc.record(
    {
      type: fc.nat(0xffff_ffff),
      requestId: fc.nat(0xffff_ffff),
      transactionId: fc.nat(0xffff_ffff),
      payload: fc.uint8Array({ maxLength: 64 }),
    },
    { noNullPrototype: true },
  ),
  { maxLength: 8 },
);

function takeAll(parser: XenStoreParser): XenStoreMessage[] {
  const taken: XenStoreMessage[] = [];
  for (let next = parser.next(); next !== undefined; next = parser.next()) {
    taken.push({ ...next, payload: Uint8Array.from(next.payload) });
  }
  return taken;
}

test("messages come out as they went in, however the stream is cut", () => {
  fc.assert(
    fc.property(messages, fc.array(fc.integer({ min: 1, max: 40 })), (sent, cuts) => {
      const stream = Buffer.concat(sent.map(encodeXenStoreMessage));
      const parser = new XenStoreParser();
      const received: XenStoreMessage[] = [];
      let at = 0;
      for (const cut of [...cuts, stream.length]) {
        parser.push(Uint8Array.from(stream.subarray(at, at + cut)));
        received.push(...takeAll(parser));
        at += cut;
      }
      assert.deepEqual(received, sent);
      assert.equal(parser.buffered, 0);
    }),
  );
});

test("a length above the payload's limit breaks the parser for good", () => {
  for (const length of [XENSTORE_PAYLOAD_MAX + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
    const parser = new XenStoreParser();
    const header = new Uint8Array(16);
    new DataView(header.buffer).setUint32(12, length, true);
    parser.push(header);
    assert.equal(parser.next(), undefined);
    assert.ok(parser.broken);
    const payload = new Uint8Array(0);
    parser.push(encodeXenStoreMessage({ type: XS_READ, requestId: 1, transactionId: 0, payload }));
    assert.equal(parser.next(), undefined);
    assert.equal(parser.buffered, 0);
  }
});

test("the longest payload passes", () => {
  const parser = new XenStoreParser();
  const payload = Buffer.alloc(XENSTORE_PAYLOAD_MAX, 7);
  parser.push(encodeXenStoreMessage({ type: XS_READ, requestId: 1, transactionId: 2, payload }));
  assert.deepEqual(parser.next(), { type: XS_READ, requestId: 1, transactionId: 2, payload });
});

test("only what a NUL ends is a string", () => {
  assert.deepEqual(decodeXenStoreStrings(Buffer.from("a\0b")), ["a"]);
  assert.deepEqual(decodeXenStoreStrings(encodeXenStoreStrings(["a", "", "\xff"])), [
    "a",
    "",
    "\xff",
  ]);
  assert.deepEqual(decodeXenStoreStrings(new Uint8Array(0)), []);
});

test("numbers and errors are those of xs_wire.h", () => {
  assert.equal(XS_DIRECTORY_PART, 22);
  assert.equal(XSD_ERRORS.length, 16);
  assert.equal(XSD_ERRORS[0], "EINVAL");
});
