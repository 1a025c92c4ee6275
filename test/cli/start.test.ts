/** What `vbdkit --help` starts without: drivers, engines and foreign calls are loaded by the commands that use them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { cleanEnvironment } from "../support/vbdkit.ts";

test("--help loads no driver, engine or foreign call", () => {
  const hook = `import { registerHooks } from "node:module";
import { writeSync } from "node:fs";
registerHooks({ load(url, context, next) { writeSync(2, url + "\\n"); return next(url, context); } });`;
  const program = join(import.meta.dirname, "../../bin/vbdkit.js");
  const words = ["--import", `data:text/javascript,${encodeURIComponent(hook)}`, program, "--help"];
  const { stderr, status } = spawnSync(process.execPath, words, {
    encoding: "utf8",
    env: cleanEnvironment(),
  });
  assert.equal(status, 0);
  const loaded = stderr.split("\n");
  assert.ok(loaded.some((url) => url.endsWith("/src/cli/program.ts")));
  const heavy =
    /\/src\/(store\/(drivers|filters|registry)|machine|ring)|\/io\/(ffi|.*engine)|koffi|^node:test/;
  assert.deepEqual(
    loaded.filter((url) => heavy.test(url)),
    [],
  );
});
