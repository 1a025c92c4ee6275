import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { listenOnUnixSocket, probeUnixSocket } from "../../src/io/unix-socket.ts";

const folder = mkdtempSync(join(tmpdir(), "vbdkit-unix-"));
const servers: Server[] = [];
after(() => {
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true });
});

function listen(path: string, mode = 0o600): Promise<void> {
  const server = createServer((socket) => socket.destroy());
  servers.push(server);
  return listenOnUnixSocket(server, path, mode);
}

test("a socket has its mode and is served", async () => {
  const path = join(folder, "moded");
  await listen(path, 0o660);
  assert.equal(statSync(path).mode & 0o777, 0o660);
  assert.equal(await probeUnixSocket(path), "served");
});

test("the socket of a process that was killed is replaced", async () => {
  const path = join(folder, "stale");
  const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  spawnSync(process.execPath, ["-e", script]);
  assert.ok(existsSync(path));
  assert.equal(await probeUnixSocket(path), "ECONNREFUSED");
  await listen(path);
  assert.equal(await probeUnixSocket(path), "served");
});

test("what cannot be listened on is said in words that help", async () => {
  const served = join(folder, "served");
  await listen(served);
  await assert.rejects(listen(served), {
    code: "EADDRINUSE",
    message: `${served}: another server listens there; end it, or choose another path`,
  });
  assert.equal(await probeUnixSocket(served), "served", "it is left alone");
  const file = join(folder, "file");
  writeFileSync(file, "precious");
  await assert.rejects(listen(file), {
    code: "EADDRINUSE",
    message: `${file}: there is something that is no socket; choose another path`,
  });
  assert.equal(statSync(file).size, 8);
  await assert.rejects(listen("/nosuch/dir/s"), {
    code: "ENOENT",
    message: "/nosuch/dir/s: there is no folder /nosuch/dir",
  });
  await assert.rejects(listen(join(file, "s")), {
    code: "ENOTDIR",
    message: `${file}/s: ${file} is no folder`,
  });
  const long = join(folder, "x".repeat(108));
  await assert.rejects(listen(long), {
    code: "ENAMETOOLONG",
    message: `${long}: the path of a Unix socket has at most 107 bytes; choose a shorter one`,
  });
});
