/** What a person gets for a mistake: one line that says what is wrong, no stack, an exit code that is not 0. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmod, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import {
  cleanEnvironment,
  serve,
  type TemporaryFolder,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

const usage = 2;
const failure = 1;

describe("a mistake gets one clear line and an exit code", { concurrency: 2 }, () => {
  let folder: TemporaryFolder;
  before(async () => {
    folder = await temporaryFolder();
    await writeFile(folder.file("good.img"), "");
    await truncate(folder.file("good.img"), 2 ** 20);
    await writeFile(folder.file("odd.img"), "x".repeat(1000));
    await writeFile(folder.file("small.img"), Buffer.alloc(4096));
  });
  after(() => folder[Symbol.asyncDispose]());

  async function fails(words: readonly string[], message: RegExp, code: number): Promise<void> {
    const outcome = await vbdkit(words, { cwd: folder.path });
    assert.match(outcome.stderr, message);
    assert.match(outcome.stderr, /^vbdkit: [^\n]+\n$/, "one line");
    assert.doesNotMatch(outcome.stderr, /\bat .*:\d+:\d+|invariant/, "no stack");
    assert.equal(outcome.stdout, "");
    assert.equal(outcome.code, code);
  }

  const cases: [string, string[], RegExp, number][] = [
    ["a command that is none", ["sreve"], /no command "sreve"; did you mean "serve"\?/, usage],
    [
      "an option that is none",
      ["serve", "--reedonly"],
      /unknown option '--reedonly'; did you mean --readonly\?/,
      usage,
    ],
    ["an option without its value", ["serve", "--unix"], /--unix/, usage],
    ["a port that is none", ["serve", "-p", "99999", "memory", "1M"], /port.*0 to 65535/, usage],
    [
      "an engine that is none",
      ["serve", "--engine", "warp", "good.img"],
      /engine.*io_uring/,
      usage,
    ],
    ["an image that is not there", ["serve", "missing.img"], /no missing\.img/, failure],
    ["info on an image that is not there", ["info", "missing.img"], /missing\.img/, failure],
    ["a folder as image", ["serve", "file", "."], /director/, failure],
    ["a size that is no multiple of 512", ["serve", "odd.img"], /odd\.img.*512/, usage],
    [
      "a driver that is none",
      ["serve", "memry", "size=1G"],
      /"memry"; did you mean "memory"\?/,
      usage,
    ],
    [
      "a driver's name for info",
      ["drivers", "memry"],
      /no driver "memry"; did you mean "memory"\?/,
      usage,
    ],
    [
      "a filter that is none",
      ["serve", "--filter", "dealy", "good.img"],
      /no filter "?dealy"?.*delay/,
      usage,
    ],
    ["a parameter that is none", ["serve", "file", "good.img", "dierct=on"], /dierct/, usage],
    ["a value that is none", ["serve", "memory", "size=lots"], /size=lots/, usage],
    ["a driver without what it needs", ["serve", "memory"], /memory.*size/, usage],
    ["a vdev that is none", ["serve", "--vdev", "floppy", "good.img"], /floppy/, usage],
    ["help about nothing", ["help", "fiel"], /no help about "fiel"; did you mean "file"\?/, usage],
    ["info of nothing", ["info"], /info needs a disk/, usage],
    ["a shell that is none", ["completion", "tcsh"], /tcsh.*bash/, usage],
    ["a copy to nowhere", ["copy", "good.img"], /missing required argument 'DESTINATION'/, usage],
    ["a copy onto another size", ["copy", "good.img", "small.img"], /small\.img is 4 KiB/, failure],
    ["a copy onto itself", ["copy", "good.img", "good.img"], /good\.img/, failure],
    [
      "a xenstore that is not there",
      ["xenstore", "-s", "./none.sock", "ls"],
      /none\.sock/,
      failure,
    ],
    [
      "a permission that is none",
      ["xenstore", "-s", "./none.sock", "chmod", "/a", "z9"],
      /none\.sock|z9/,
      failure,
    ],
    [
      "a port and a socket",
      ["serve", "-p", "0", "-U", "s", "memory", "1M"],
      /--port.*--unix/,
      usage,
    ],
    ["an address without a port", ["serve", "-i", "::1", "memory", "1M"], /--ip.*--port/, usage],
    [
      "JSON beside a command",
      ["serve", "--json", "--run", ":", "memory", "1M"],
      /--json.*--run/,
      usage,
    ],
    [
      "an export name for two disks",
      ["serve", "-e", "x", "good.img", "memory", "1M"],
      /export/,
      usage,
    ],
  ];
  for (const [name, words, message, code] of cases) {
    test(name, () => fails(words, message, code));
  }

  test("an image that may not be read", async () => {
    const path = folder.file("secret.img");
    await writeFile(path, Buffer.alloc(512));
    await chmod(path, 0o000);
    // Root reads everything unless its capabilities are taken away.
    const program = join(import.meta.dirname, "../../bin/vbdkit.js");
    const drop = ["--inh-caps=-all", "--bounding-set=-all", process.execPath, program];
    const words = ["serve", path];
    const { status, stderr } =
      process.getuid?.() === 0
        ? spawnSync("setpriv", [...drop, ...words], { encoding: "utf8", env: cleanEnvironment() })
        : spawnSync(process.execPath, [program, ...words], { encoding: "utf8" });
    assert.match(stderr, /^vbdkit: no permission to open .*secret\.img\n$/);
    assert.equal(status, failure);
  });

  test("a socket that is in use", async () => {
    const path = folder.file("busy.sock");
    const listener = createServer().listen(path);
    await new Promise((resolve) => listener.once("listening", resolve));
    try {
      await fails(
        ["serve", "-U", path, "memory", "1M"],
        /busy\.sock: another server listens there/,
        failure,
      );
    } finally {
      listener.close();
    }
  });

  test("a port that is in use", async () => {
    const listener = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => listener.once("listening", resolve));
    const { port } = listener.address() as { port: number };
    try {
      await fails(
        ["serve", "-p", String(port), "memory", "1M"],
        /another program listens there/,
        failure,
      );
    } finally {
      listener.close();
    }
  });

  test("a second writer", async () => {
    await using _first = await serve([folder.file("good.img")]);
    await fails(["serve", "good.img"], /good\.img.*(use|lock|writ)/, failure);
  });
});

test("--verbose shows where an error came from", async () => {
  const { stderr, code } = await vbdkit(["serve", "--verbose", "/nowhere/missing.img"]);
  assert.match(stderr, /^vbdkit: .*\n[^\n]*Error/);
  assert.match(stderr, /\n +at /);
  assert.equal(code, failure);
});
