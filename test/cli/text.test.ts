/** The small pure parts of the command line: cutting words, suggestions, tables, progress, xenstore's escapes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { histogramLines } from "../../src/cli/bench-text.ts";
import { groupDisks, splitDisk } from "../../src/cli/disks.ts";
import { messageOf } from "../../src/cli/errors.ts";
import { fields, jsonText, table } from "../../src/cli/output.ts";
import { progressLine } from "../../src/cli/progress.ts";
import { escapeValue, unescapeValue } from "../../src/cli/xenstore-text.ts";
import { formatDuration } from "../../src/util/duration.ts";
import { nearest } from "../../src/util/nearest.ts";
import { quote } from "../../src/util/quote.ts";

const drivers = new Set(["file", "memory", "nbd"]);

test("words are cut into disks at driver names and second bare words", () => {
  const cases: [string, string[]][] = [
    ["a.img", ["a.img"]],
    ["a.img b.img", ["a.img", "b.img"]],
    ["file a.img", ["file a.img"]],
    ["memory 1G file a.img", ["memory 1G", "file a.img"]],
    ["memory size=1G a.img", ["memory size=1G a.img"]],
    ["a.img rdelay=1ms b.img", ["a.img rdelay=1ms", "b.img"]],
    ["memory 1G rdelay=1ms b.img", ["memory 1G rdelay=1ms", "b.img"]],
    ["nbd://host/x memory 1M", ["nbd://host/x", "memory 1M"]],
  ];
  for (const [words, expected] of cases) {
    const groups = groupDisks(words.split(" "), drivers).map((group) => group.join(" "));
    assert.deepEqual(groups, expected, words);
  }
});

test("a disk in one word is cut only where it begins with a driver or has parameters", () => {
  assert.deepEqual(splitDisk("memory 1G", drivers), ["memory", "1G"]);
  assert.deepEqual(splitDisk("a.img direct=on", drivers), ["a.img", "direct=on"]);
  assert.deepEqual(splitDisk("my disk.img", drivers), ["my disk.img"]);
});

test("the nearest known word is found, and none where nothing is near", () => {
  assert.equal(nearest("sreve", ["serve", "info"]), "serve");
  assert.equal(nearest("memry", ["memory", "file"]), "memory");
  assert.equal(nearest("xyzzy", ["serve", "info"]), undefined);
});

test("a word that a shell would cut is quoted", () => {
  assert.equal(quote("/tmp/a.img"), "/tmp/a.img");
  assert.equal(quote("nbd+unix:///?socket=/tmp/s"), "'nbd+unix:///?socket=/tmp/s'");
  assert.equal(quote("it's"), "'it'\\''s'");
});

test("a table aligns its columns", () => {
  assert.equal(table([["a", "1"], ["long", "2"]]), "a     1\nlong  2"); // biome-ignore format: one line reads better
});

test("plain data prints as fields, nested data below its name", () => {
  const text = fields({
    ringPages: 4,
    persistent: true,
    grants: { mapped: 1056 },
    none: undefined,
  });
  assert.equal(text, "ring pages  4\npersistent  yes\ngrants\n  mapped  1,056");
});

test("progress shows share, rate and remaining time", () => {
  const line = progressLine(512 * 2 ** 20, 2 ** 30, 2);
  assert.match(line, /^ 50% \[#{12} {12}\] 512 MiB of 1 GiB {2}256 MiB\/s {2}0:02 left$/);
});

test("a time has three digits and the unit that suits it", () => {
  const cases: [number, string][] = [
    [0, "0 µs"],
    [0.000_182, "0.182 µs"],
    [0.0623, "62.3 µs"],
    [0.9991, "999 µs"],
    [0.9996, "1 ms"],
    [16.384, "16.4 ms"],
    [999.6, "1 s"],
    [61_000, "61 s"],
    [123_456, "123 s"],
    [1e8, "100000 s"],
  ];
  for (const [milliseconds, text] of cases) assert.equal(formatDuration(milliseconds), text);
});

test("a picture of latencies shows what is there, however little, and fits", () => {
  const octaves = [
    { from: 0, to: 1, requests: 1 },
    { from: 1, to: 2, requests: 0 },
    { from: 2, to: 4, requests: 99_999 },
  ];
  const wide = histogramLines(octaves, 200);
  assert.deepEqual(wide, [
    "  <  1 µs       1    0.00 %  ▏",
    "  <  2 µs       0    0.00 %",
    `  <  4 µs  99,999  100.00 %  ${"█".repeat(48)}`,
  ]);
  for (const line of histogramLines(octaves, 40)) assert.ok(line.length <= 40);
});

test("a system error is said in words, on one line", () => {
  const error = Object.assign(new Error("ENOENT: no such file, open 'x'"), {
    code: "ENOENT",
    syscall: "open",
    path: "x.img",
  });
  assert.equal(messageOf(error), "x.img: no such file or directory");
  assert.equal(messageOf(new Error("one\n  two")), "one two");
});

test("xenstore's escapes are those of libxenstore", () => {
  assert.equal(escapeValue(Buffer.from('a\t\n\r\\"')), 'a\\t\\n\\r\\\\"');
  assert.equal(escapeValue(Buffer.from([0, 7, 8, 0x7f, 0xff])), "\\000\\007\\x08\\x7f\\xff");
  assert.deepEqual(unescapeValue("a\\x41\\102\\\\n\\q"), Buffer.from("aAB\\n\\q"));
});

test("any value survives xenstore's escapes and back", () => {
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      assert.deepEqual(unescapeValue(escapeValue(bytes)), Buffer.from(bytes));
    }),
  );
});

test("in JSON a frontend's reasons are keys like all others, and no other key is changed", () => {
  const counts = { "command shortage": 1, held: 2 };
  const shown = JSON.parse(jsonText({ freezes: counts, waits: counts, disks: { "my disk": 3 } }));
  const keys = { commandShortage: 1, held: 2 };
  assert.deepEqual(shown, { freezes: keys, waits: keys, disks: { "my disk": 3 } });
});
