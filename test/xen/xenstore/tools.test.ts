/** Debian's xenstore tools (package xenstore-utils) on our daemon's socket: the judges of the wire. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { promisify } from "node:util";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";

const execute = promisify(execFile);

/** A daemon on a socket of its own, with a way to run tools against it. */
async function start() {
  await using undo = new AsyncDisposableStack();
  const directory = await mkdtemp(join(tmpdir(), "vbdkit-xenstore-"));
  undo.defer(() => rm(directory, { recursive: true, force: true }));
  const socket = join(directory, "socket");
  const daemon = undo.use(new XenStoreDaemon());
  undo.use(await daemon.listen(socket));
  const env = { ...process.env, XENSTORED_PATH: socket };
  const stack = undo.move();
  return {
    daemon,
    socket,
    env,
    /** What a tool prints; rejects where it fails. */
    run: async (tool: string, ...words: string[]): Promise<string> =>
      (await execute(`xenstore-${tool}`, words, { env })).stdout,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

test("the tools write, read, list and remove", async () => {
  await using store = await start();
  const { run } = store;
  await run("write", "/a/b", "one", "/a/c", "two");
  assert.equal(await run("read", "/a/b", "/a/c"), "one\ntwo\n");
  assert.equal(await run("read", "-p", "/a/b"), "/a/b: one\n");
  assert.equal(await run("list", "/a"), "b\nc\n");
  assert.equal(await run("list", "-p", "/a"), "/a/b\n/a/c\n");
  await run("exists", "/a/b");
  await run("rm", "/a/b");
  await assert.rejects(run("exists", "/a/b"), { code: 1 });
  await assert.rejects(run("read", "/a/b"), /couldn't read path \/a\/b/);
  // -t also removes the parents that this leaves without children.
  await run("rm", "-t", "/a/c");
  await assert.rejects(run("exists", "/a"), { code: 1 });
});

test("xenstore-ls shows the tree, full paths, and permissions that xenstore-chmod gave", async () => {
  await using store = await start();
  const { run } = store;
  await run("write", "/a/b", "one", "/a/c/d", "two\nlines");
  await run("chmod", "/a/c", "n0", "r1", "w2", "b3");
  assert.equal(await run("ls", "/a"), 'b = "one"\nc = ""\n d = "two\\nlines"\n');
  assert.equal(
    await run("ls", "-f", "-p", "/a"),
    ['/a/b = "one"   (n0)', '/a/c = ""   (n0,r1,w2,b3)', '/a/c/d = "two\\nlines"   (n0)', ""].join(
      "\n",
    ),
  );
  await run("chmod", "-r", "/a", "r0");
  assert.match(await run("ls", "-f", "-p", "/a"), /^\/a\/c\/d = "two\\nlines" {3}\(r0\)$/m);
  assert.match(await run("ls"), /^tool = ""\n xenstored = ""\n/);
});

test("xenstore-ls lists a directory that no single answer can hold", async () => {
  await using store = await start();
  const client = await XenStoreClient.connect(store.socket);
  const names = Array.from({ length: 1000 }, (_, i) => `name-${i}`);
  await Promise.all(names.map((name) => client.write(`/big/${name}`, "")));
  await client[Symbol.asyncDispose]();
  assert.equal(await store.run("list", "/big"), `${names.join("\n")}\n`);
});

test("xenstore-watch prints what our client changes", { timeout: 20_000 }, async () => {
  await using store = await start();
  const child = spawn("xenstore-watch", ["-n", "3", "/a"], { env: store.env });
  const lines: string[] = [];
  await using client = await XenStoreClient.connect(store.socket);
  for await (const line of createInterface({ input: child.stdout })) {
    lines.push(line);
    if (lines.length === 1) {
      await client.write("/a/b", "1");
      await client.write("/elsewhere", "1");
      await client.remove("/a");
    }
  }
  if (child.exitCode === null) await once(child, "exit");
  assert.deepEqual(lines, ["/a", "/a/b", "/a"]);
});

test("what the tools write, our client reads, and the other way round", async () => {
  await using store = await start();
  await using client = await XenStoreClient.connect(store.socket);
  await store.run("write", "/a", "from the tool");
  assert.equal(await client.read("/a"), "from the tool");
  await client.write("/a", "from us");
  assert.equal(await store.run("read", "/a"), "from us\n");
});

test("a killed client leaves nothing behind", async () => {
  await using store = await start();
  const child = spawn("xenstore-watch", ["/a"], { env: store.env });
  await once(child.stdout, "data");
  assert.equal(store.daemon.clients, 1);
  child.kill("SIGKILL");
  await once(child, "exit");
  await using client = await XenStoreClient.connect(store.socket);
  for (let i = 0; i < 100 && store.daemon.clients > 1; i++) await client.read("/");
  assert.equal(store.daemon.clients, 1);
});

test("a socket belongs to a domain, has its mode, and goes with its daemon", async () => {
  await using store = await start();
  const path = `${store.socket}-1`;
  const socket = await store.daemon.listen(path, { domid: 1, mode: 0o660 });
  assert.equal((await stat(path)).mode & 0o777, 0o660);
  assert.equal((await stat(store.socket)).mode & 0o777, 0o600);
  const client = await XenStoreClient.connect(path);
  await assert.rejects(client.write("/a", "1"), { code: "EACCES" });
  await socket[Symbol.asyncDispose]();
  await socket[Symbol.asyncDispose]();
  await assert.rejects(client.read("/a"), { code: /ECONNRESET|EPIPE/ });
  await assert.rejects(stat(path), { code: "ENOENT" });
});

test("nobody can connect as a domain that died", async () => {
  await using store = await start();
  const path = `${store.socket}-1`;
  await store.daemon.listen(path, { domid: 1 });
  store.daemon.introduce(1);
  const client = await XenStoreClient.connect(path);
  store.daemon.release(1);
  assert.equal((await client.closed)?.code, "ECONNRESET");
  await assert.rejects(XenStoreClient.connect(path));
});

test("a socket in use is left alone, a stale one is replaced, and a file is no socket", async () => {
  await using store = await start();
  await using other = new XenStoreDaemon();
  await assert.rejects(other.listen(store.socket), { code: "EADDRINUSE" });
  const file = `${store.socket}-file`;
  await writeFile(file, "");
  await assert.rejects(other.listen(file), { code: "EADDRINUSE" });
  await assert.rejects(other.listen(`/tmp/${"x".repeat(120)}`), { code: "ENAMETOOLONG" });
  const stale = `${store.socket}-stale`;
  const script = `require("net").createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, "SIGKILL"))`;
  await assert.rejects(execute(process.execPath, ["-e", script]));
  assert.ok((await stat(stale)).isSocket());
  await other.listen(stale);
  await using client = await XenStoreClient.connect(stale);
  await client.write("/a", "1");
});
