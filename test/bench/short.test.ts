/** The short benchmark, which fails only where ours has fallen far behind. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { text } from "node:stream/consumers";
import { test } from "node:test";

test("no row of the short benchmark is below half of its aims", async () => {
  const child = spawn(
    process.execPath,
    ["--conditions=vbdkit-source", "bench/bench.ts", "--short"],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  const ended = Promise.withResolvers<number | null>();
  child.on("error", ended.reject).on("close", ended.resolve);
  const [output, errors] = await Promise.all([text(child.stdout), text(child.stderr)]);
  console.log(output);
  assert.equal(await ended.promise, 0, `${output}${errors}`);
  assert.match(output, /^pipeline: /m);
  assert.match(output, / of fio io_uring \(aim /);
});
