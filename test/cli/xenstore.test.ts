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
