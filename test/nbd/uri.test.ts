import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { formatNbdUri, parseNbdUri } from "../../src/nbd/index.ts";

describe("NBD URIs", () => {
  test("are read as nbd_connect_uri(3) reads them", () => {
    const cases: [string, ReturnType<typeof parseNbdUri>][] = [
      ["nbd://example.com", { address: { host: "example.com", port: 10809 }, exportName: "" }],
      ["nbd://example.com:99/a", { address: { host: "example.com", port: 99 }, exportName: "a" }],
      ["nbd://[::1]:99//a/b", { address: { host: "::1", port: 99 }, exportName: "/a/b" }],
      ["nbd://10.0.0.1/a%20b", { address: { host: "10.0.0.1", port: 10809 }, exportName: "a b" }],
      ["nbd+unix:///?socket=/run/s", { address: { path: "/run/s" }, exportName: "" }],
      ["nbd+unix:///x?socket=/a%20b", { address: { path: "/a b" }, exportName: "x" }],
    ];
    for (const [text, parsed] of cases) assert.deepEqual(parseNbdUri(text), parsed, text);
  });

  test("that are wrong say why", () => {
    const cases: [string, RegExp][] = [
      ["disk.img", /not a URI/],
      ["http://example.com/", /not an NBD URI/],
      ["nbds://example.com/", /TLS is not supported/],
      ["nbds+unix:///?socket=/s", /TLS is not supported/],
      ["nbd+unix:///name", /needs \?socket/],
      ["nbd+unix://host/?socket=/s", /takes no host/],
      ["nbd://host/?socket=/s", /socket= belongs to/],
      ["nbd://host/%ff", /percent-encoded/],
    ];
    for (const [text, message] of cases) {
      assert.throws(() => parseNbdUri(text), { code: "EINVAL", message });
    }
  });

  test("that are written are read back as they were", () => {
    const name = fc.string({ unit: "grapheme", maxLength: 20 });
    fc.assert(
      fc.property(name, name, (exportName, path) => {
        const uri = { address: { path: `/${path}` }, exportName };
        assert.deepEqual(parseNbdUri(formatNbdUri(uri)), uri);
      }),
    );
    for (const exportName of [".", "..", "a/../b", "./", "?", "#"]) {
      const uri = { address: { path: "/s" }, exportName };
      assert.deepEqual(parseNbdUri(formatNbdUri(uri)), uri);
    }
    const tcp = { address: { host: "::1", port: 1 }, exportName: "a/b c" };
    assert.deepEqual(parseNbdUri(formatNbdUri(tcp)), tcp);
  });
});
