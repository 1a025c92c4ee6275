/** nbdkit judges what we took from it: the pattern is its pattern, and words it accepts are words we accept. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import { Reactor } from "../../src/io/reactor.ts";
import { Disk } from "../../src/store/disk.ts";
import { drivers, filters, openStore } from "../../src/store/registry.ts";

const run = promisify(execFile);

test("pattern is byte for byte nbdkit's, also beyond 4 GiB and at odd offsets", async () => {
  const reactor = new Reactor();
  for (const [size, offset, length] of [
    [4608, 0, 4608],
    [2 ** 33 + 512, 2 ** 32 - 1001, 5000],
    [2 ** 33 + 512, 2 ** 33 + 499, 13],
  ] as const) {
    await using disk = new Disk(await openStore(`pattern ${size}`, { reactor }), reactor);
    const range = ["--filter=offset", "pattern", `${size}`, `offset=${offset}`, `range=${length}`];
    const { stdout } = await run("nbdkit", ["-U", "-", ...range, "--run", 'nbdcopy "$uri" -'], {
      encoding: "buffer",
    });
    assert.equal(stdout.length, length);
    assert.equal(Buffer.compare(await disk.read(offset, length), stdout), 0);
  }
});

test("the parameters of nbdkit's filters are those of ours", async () => {
  for (const [name, except] of [
    ["delay", ["delay-fast-zero"]],
    ["error", []],
  ] as const) {
    const { stdout } = await run("nbdkit", ["--help", `--filter=${name}`, "null"]);
    const own = Object.keys(filters.get(name)!.parameters);
    const theirs = [...stdout.matchAll(/^(\w[\w-]*)=/gm)].map((match) => match[1]!);
    for (const word of theirs.filter((each) => !(except as readonly string[]).includes(each))) {
      assert.ok(word === "size" || own.includes(word), `${name}: ${word}=`);
    }
  }
  assert.ok(drivers.has("memory") && drivers.has("null") && drivers.has("pattern"));
});
