/** The pages of docs/guide do what they say: their commands are run in their order, by one shell, as a reader would. Those
 * that need a Xen are run there (test/xen/lab/all/guide.test.ts). */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, globSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { test } from "node:test";
import { quote } from "../../src/util/quote.ts";
import { cleanEnvironment, finished, temporaryFolder } from "../support/vbdkit.ts";

const root = join(import.meta.dirname, "../..");

/** What runs beside the script until the next server is begun: a reader has it in another terminal. */
const prelude = `set -eu -o pipefail
server=
stop_server() { if [ -n "$server" ]; then kill "$server"; wait "$server"; server=; fi; }
trap 'stop_server || true' EXIT
await_server() {
  for _ in $(seq 200); do
    if vbdkit stats lab >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "no server came" >&2
  return 1
}
`;

const pages = globSync("docs/guide/*.md", { cwd: root }).sort();
for (const page of pages.filter((name) => readPage(name).includes("\n```sh\n"))) {
  test(`the commands of ${page} run`, async () => {
    await using folder = await temporaryFolder();
    await using tools = await temporaryFolder();
    writeFileSync(
      tools.file("vbdkit"),
      `#!/bin/sh\nexec ${quote(process.execPath)} ${quote(join(root, "bin/vbdkit.js"))} "$@"\n`,
    );
    chmodSync(tools.file("vbdkit"), 0o755);
    const blocks = [...readPage(page).matchAll(/^```(.*)\n([\s\S]*?)^```$/gm)];
    const script = blocks.map(([, kind, commands]) => {
      if (kind === "sh") return `set -x\n${commands}{ set +x; } 2>/dev/null\n`;
      assert.equal(kind, "sh server", `${page} has a block of another kind`);
      return `stop_server\n${commands!.trimEnd()} >/dev/null &\nserver=$!\nawait_server\n`;
    });
    const child = spawn(
      "bash",
      ["-c", `${prelude}${script.join("")}stop_server\necho finished\n`],
      {
        cwd: folder.path,
        env: cleanEnvironment({ PATH: [tools.path, process.env.PATH].join(delimiter) }),
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    const { stdout, stderr, code } = await finished(child);
    assert.equal(code, 0, `${stdout}\n${stderr}`);
    assert.match(stdout, /finished\n$/);
    assert.ok(blocks.length > 1);
  });
}

function readPage(page: string): string {
  return readFileSync(join(root, page), "utf8");
}
