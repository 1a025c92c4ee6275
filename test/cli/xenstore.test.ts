/** `vbdkit xenstore` against Debian's own tools, on the socket of a running server: the same words, the same text. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { finished, type Served, serve, start, vbdkit } from "../support/vbdkit.ts";

describe("xenstore", () => {
  let served: Served;
  before(async () => {
    served = await serve(["memory", "1M"]);
  });
  after(() => served[Symbol.asyncDispose]());

  function debian(tool: string, ...words: string[]): string {
    const { stdout, stderr, status } = spawnSync(`xenstore-${tool}`, words, {
      encoding: "utf8",
      env: { ...process.env, XENSTORED_PATH: served.info.xenstoreSocket },
    });
    assert.equal(status, 0, stderr);
    return stdout;
  }
  async function ours(...words: string[]): Promise<string> {
    const { stdout, stderr, code } = await vbdkit([
      "xenstore",
      "-s",
      served.info.directory,
      ...words,
    ]);
    assert.equal(code, 0, stderr);
    return stdout;
  }

  test("ls prints what xenstore-ls prints, with whole paths, permissions, and as a tree", async () => {
    debian(
      "write",
      "/wide/a",
      "x".repeat(100),
      "/wide/b",
      "\\x01".repeat(60),
      "/wide/c",
      "y".repeat(56),
    );
    for (const words of [["-f"], ["-p"], ["-f", "-p"], [], ["/local/domain/0"]]) {
      assert.equal(await ours("ls", ...words), debian("ls", ...words), words.join(" "));
    }
    debian("rm", "/wide");
  });

  test("write, read, list and rm do what Debian's do", async () => {
    await ours("write", "/test/a", "one\\ttwo\\x01", "/test/b", "2");
    assert.equal(debian("read", "/test/a"), await ours("read", "/test/a"));
    assert.equal(debian("list", "/test"), await ours("list", "/test"));
    assert.equal(await ours("list", "/test"), "a\nb\n");
    debian("write", "/test/c", "\\\\");
    assert.equal(await ours("read", "/test/c"), "\\\\\n");
    await ours("rm", "/test");
    const { stderr, code } = await vbdkit([
      "xenstore",
      "-s",
      served.info.directory,
      "read",
      "/test",
    ]);
    assert.equal(stderr, "vbdkit: /test: there is no such node\n");
    assert.equal(code, 1);
  });

  test("every word and option of Debian's does what Debian's does", async () => {
    const cases: [string, ...string[]][] = [
      ["write", "/w/a", "one", "/w/b", "t\\two", "/w/deep/er/est", "3"],
      ["write", "-R", "/w/raw", "a\\tb"],
      ["read", "/w/a", "/w/b", "/w/raw"],
      ["read", "-p", "/w/a", "/w/b"],
      ["read", "-R", "/w/b"],
      ["read", "-p", "-R", "/w/a", "/w/b"],
      ["read", "/w/a", "/w/none"],
      ["list", "/w", "/local"],
      ["list", "-p", "/w", "/local"],
      ["list", "/w/a"],
      ["list", "/none"],
      ["exists", "/w/a"],
      ["exists", "/none"],
      ["exists", "/w/a", "/none"],
      ["exists", "/none", "/w/a"],
      ["chmod", "-r", "/w", "n1", "r2"],
      ["chmod", "-u", "/w/deep/er", "n0", "b3"],
      ["chmod", "/none", "n0"],
      ["ls", "-f", "-p"],
      ["rm", "/none"],
      ["rm", "-t", "/w/deep/er/est"],
      ["rm", "-t", "/w/a", "/w/b"],
      ["ls", "/w"],
      ["rm", "/w/raw", "/w"],
      ["ls", "/w"],
    ];
    const outcomes: string[][] = [[], []];
    for (const [tool, ...words] of cases) {
      const { stdout, status } = spawnSync(`xenstore-${tool}`, words, {
        encoding: "utf8",
        env: { ...process.env, XENSTORED_PATH: served.info.xenstoreSocket },
      });
      outcomes[0]!.push(`${tool} ${words.join(" ")}\n${stdout}${status}`);
    }
    for (const [tool, ...words] of cases) {
      const all = ["xenstore", "-s", served.info.directory, tool, ...words];
      const { stdout, code } = await vbdkit(all);
      outcomes[1]!.push(`${tool} ${words.join(" ")}\n${stdout}${code}`);
    }
    assert.deepEqual(outcomes[1], outcomes[0]);
  });

  test("chmod sets what xenstore-ls -p shows", async () => {
    await ours("write", "/shown", "x");
    await ours("chmod", "/shown", "n0", "r1", "b3");
    assert.match(debian("ls", "-p", "/"), /shown = "x".*\(n0,r1,b3\)/);
    await ours("rm", "/shown");
  });

  test("watch prints what changes, and ends after as many as asked", async () => {
    const child = start([
      "xenstore",
      "-s",
      served.info.xenstoreSocket,
      "watch",
      "-n",
      "2",
      "/seen",
    ]);
    const outcome = finished(child);
    await new Promise((resolve) => child.stdout!.once("data", resolve));
    debian("write", "/seen/there", "1");
    const { stdout, code } = await outcome;
    assert.equal(stdout, "/seen\n/seen/there\n");
    assert.equal(code, 0);
    debian("rm", "/seen");
  });

  test("watch ends quietly when its reader goes away", async () => {
    const child = start(["xenstore", "-s", served.info.xenstoreSocket, "watch", "/gone"]);
    await new Promise((resolve) => child.stdout!.once("data", resolve));
    child.stdout!.destroy();
    const outcome = finished(child);
    for (let i = 0; child.exitCode === null && i < 50; i++) {
      debian("write", "/gone/again", String(i));
      await sleep(50);
    }
    const { stderr, code } = await outcome;
    assert.equal(stderr, "");
    assert.equal(code, 0);
    debian("rm", "/gone");
  });

  test("the socket comes from the environment where none is named", async () => {
    const { xenstoreSocket, directory } = served.info;
    for (const more of [{ XENSTORED_PATH: xenstoreSocket }, { VBDKIT_MACHINE: directory }]) {
      const { stdout } = await vbdkit(["xenstore", "list", "/"], {
        env: { ...process.env, ...more },
      });
      assert.match(stdout, /^local$/m);
    }
  });
});
