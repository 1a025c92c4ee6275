import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { statSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { allocateRegion } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { NbdServer } from "../../src/nbd/index.ts";
import { Operation, RequestFlag } from "../../src/store/block-store.ts";
import { Errno } from "../../src/store/errors.ts";
import { run, serve, succeed, temporaryFolder } from "./harness.ts";
import { MemoryDouble } from "./memory-double.ts";

const MiB = 1024 * 1024;

/** Runs Python against libnbd, with `h` connected to the URI and base:allocation asked for. */
async function libnbd(uri: string, script: string, before = ""): Promise<string> {
  const program = `
import nbd, sys, errno
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
${before}
h.connect_uri(${JSON.stringify(uri)})
def fails(name, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == name, error
        return
    raise AssertionError("did not fail: " + name)
${script}
h.shutdown()
print("fine")
`;
  return await succeed("/usr/bin/python3", "-c", program);
}

/** A client that has chosen the export and asks for nothing until it is told to leave, or is cut off: then it says why. */
async function holdOpen(uri: string): Promise<{ leave(): void; ended: Promise<string> }> {
  const script = `
import nbd, sys, select
h = nbd.NBD()
h.connect_uri(${JSON.stringify(uri)})
print("here", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    if h.poll(20) == 1 and (h.aio_is_dead() or h.aio_is_closed()):
        h.pread(512, 0)
`;
  const child = spawn("/usr/bin/python3", ["-c", script], { stdio: ["pipe", "pipe", "pipe"] });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
  });
  const ended = once(child, "close").then(() => errors);
  await once(child.stdout, "data");
  return { leave: () => child.stdin.end(), ended };
}

describe("the NBD server, judged by other people's programs", () => {
  test("nbdinfo sees every feature and has nothing to warn of", async () => {
    await using served = await serve(64 * MiB);
    const { code, stdout, stderr } = await run("nbdinfo", "--json", served.uri);
    assert.equal(code, 0);
    assert.equal(stderr, "");
    const info = JSON.parse(stdout);
    assert.equal(info.protocol, "newstyle-fixed");
    assert.equal(info.structured, true);
    const [disk] = info.exports;
    assert.equal(disk["export-size"], 64 * MiB);
    assert.equal(disk.description, "a disk for tests");
    assert.deepEqual(disk.contexts, ["base:allocation"]);
    for (const can of ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"]) {
      assert.equal(disk[`can_${can}`], true, can);
    }
    assert.equal(disk.is_read_only, false);
    assert.equal(disk.block_size_maximum, 32 * MiB);
  });

  test("nbdinfo lists exports by name and description, and each can be opened", async () => {
    await using served = await serve(MiB);
    const { reactor } = served;
    const other = new MemoryDouble(reactor, 2 * MiB);
    await using server = new NbdServer(
      [
        { name: "système", store: served.store, description: "the root" },
        { name: "a/b", store: other, readOnly: true },
      ],
      { reactor },
    );
    const path = served.folder.file("two.sock");
    const { uri } = await server.listen({ path });
    const { exports } = JSON.parse(await succeed("nbdinfo", "--list", "--json", uri));
    assert.deepEqual(
      exports.map((entry: Record<string, unknown>) => [entry["export-name"], entry.description]),
      [
        ["système", "the root"],
        ["a/b", undefined],
      ],
    );
    assert.equal((await succeed("nbdinfo", "--size", server.uri("a/b"))).trim(), String(2 * MiB));
    assert.equal((await run("nbdinfo", server.uri("none"))).code, 1);
    assert.equal((await succeed("nbdinfo", "--size", uri)).trim(), String(MiB));
  });

  test("an export that has no clients any more holds no memory for payloads", async () => {
    await using served = await serve(MiB);
    let lent = 0;
    const allocate = (byteLength: number) => {
      const region = allocateRegion(byteLength);
      region.onRelease(() => lent--);
      lent++;
      return region;
    };
    Object.assign(served.store, { allocate });
    const other = await holdOpen(served.uri);
    await libnbd(served.uri, "h.pread(4096, 0); h.pread(65536, 0)");
    while (served.server.counters.connections > 1) await turn();
    assert.equal(lent, 2, "kept for the other client");
    other.leave();
    await other.ended;
    while (served.server.counters.connections > 0) await turn();
    assert.equal(lent, 0);
  });

  test("its Unix socket is its owner's alone, and goes away with it", async () => {
    await using served = await serve(MiB);
    assert.equal(statSync(served.socket).mode & 0o777, 0o600);
    await served.server.close();
    assert.throws(() => statSync(served.socket), { code: "ENOENT" });
    await assert.rejects(served.server.listen({ port: 0 }), { code: "ESHUTDOWN" });
  });

  test("it serves TCP on the loopback unless told otherwise, and says where", async () => {
    await using served = await serve(MiB);
    const { uri, address } = await served.server.listen({});
    assert.ok("host" in address && address.host === "127.0.0.1");
    assert.equal((await succeed("nbdinfo", "--size", uri)).trim(), String(MiB));
    await assert.rejects(served.server.listen(address), {
      code: "EADDRINUSE",
      message: `127.0.0.1 port ${address.port}: another program listens there; end it, or choose another port`,
    });
  });

  test("what it cannot listen on it says in words that help", async () => {
    await using served = await serve(MiB);
    await assert.rejects(served.server.listen({ path: served.socket }), {
      code: "EADDRINUSE",
      message: `${served.socket}: another server listens there; end it, or choose another path`,
    });
    await assert.rejects(served.server.listen({ path: "/nosuch/dir/s" }), {
      code: "ENOENT",
      message: "/nosuch/dir/s: there is no folder /nosuch/dir",
    });
    await assert.rejects(served.server.listen({ path: `/tmp/${"x".repeat(120)}` }), {
      code: "EINVAL",
    });
    assert.equal((await succeed("nbdinfo", "--size", served.uri)).trim(), String(MiB));
  });

  test("nbdcopy and qemu-img carry an image there and back unchanged", async () => {
    await using served = await serve(24 * MiB);
    const { folder, uri } = served;
    const data = Buffer.alloc(24 * MiB);
    randomBytes(5 * MiB).copy(data, 3 * MiB);
    randomBytes(100_000).copy(data, 20 * MiB + 512);
    await writeFile(folder.file("in"), data);
    await succeed("nbdcopy", folder.file("in"), uri);
    assert.equal(Buffer.compare(served.store.bytes, data), 0);
    await succeed("qemu-img", "compare", "-f", "raw", "-F", "raw", folder.file("in"), uri);
    await succeed("nbdcopy", uri, folder.file("out"));
    assert.equal(Buffer.compare(await readFile(folder.file("out")), data), 0);
    await succeed("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, folder.file("q"));
    await succeed("qemu-img", "compare", folder.file("q"), uri);
    served.store.bytes.fill(0xaa);
    await succeed("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", folder.file("q"), uri);
    assert.equal(Buffer.compare(served.store.bytes, data), 0);
    assert.match(await succeed("qemu-img", "info", uri), /virtual size: 24 MiB/);
  });

  test("qemu-io writes, zeroes, discards and maps", async () => {
    await using served = await serve(4 * MiB);
    const commands = [
      ...["write -P 0x11 0 1M", "write -f -P 0x22 1M 64k", "write -z -u 128k 128k", "flush"],
      ...["discard 512k 128k", "read -P 0 128k 128k", "read -P 0x11 0 128k"],
      "read -P 0x22 1M 64k",
    ];
    const parameters = commands.flatMap((command) => ["-c", command]);
    const output = await succeed("qemu-io", "-f", "raw", ...parameters, served.uri);
    assert.ok(!/failed|error/i.test(output), output);
    const map = JSON.parse(await succeed("nbdinfo", "--map", "--json", served.uri));
    assert.deepEqual(
      map.map(({ offset, length, type }: Record<string, number>) => [offset, length, type]),
      [
        [0, 128 * 1024, 0],
        [128 * 1024, 128 * 1024, 3],
        [256 * 1024, 256 * 1024, 0],
        [512 * 1024, 128 * 1024, 3],
        [640 * 1024, MiB + 64 * 1024 - 640 * 1024, 0],
        [MiB + 64 * 1024, 3 * MiB - 64 * 1024, 3],
      ],
    );
  });

  test("fio's verifying job finds its data, at depth and over several connections", async () => {
    await using served = await serve(16 * MiB);
    await succeed(
      "fio",
      ...["--name=verify", "--ioengine=nbd", `--uri=${served.uri}`, "--rw=randwrite"],
      ...["--bsrange=512-128k", "--blockalign=512", "--iodepth=32", "--size=8M"],
      ...["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--minimal"],
    );
  });

  test("libnbd's odd cases: flags, errors, structured replies on and off", async () => {
    await using served = await serve(4 * MiB, { minimum: 512 });
    const { uri, store } = served;
    const script = `
assert h.can_multi_conn() and h.can_fua() and h.can_fast_zero()
buf = bytes(range(256)) * 4
h.pwrite(buf, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(1024, 4096) == buf
fails("EINVAL", lambda: h.pread(1024, 4097))
fails("EINVAL", lambda: h.pread(100, 4096))
fails("EINVAL", lambda: h.pread(0, 0))
fails("EINVAL", lambda: h.pread(1024, h.get_size()))
fails("ENOSPC", lambda: h.pwrite(buf, h.get_size() - 512))
fails("ENOSPC", lambda: h.zero(1024, 2**63 - 1024))
fails("EINVAL", lambda: h.trim(1024, h.get_size()))
fails("EINVAL", lambda: h.pwrite(buf, 0, nbd.CMD_FLAG_FAST_ZERO))
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
h.flush()
h.trim(65536, 65536, nbd.CMD_FLAG_FUA)
`;
    const structured = `
assert h.get_structured_replies_negotiated()
assert h.pread(1024, 4096, nbd.CMD_FLAG_DF) == buf
chunks = []
h.pread_structured(1024, 4096, lambda b, o, s, e: chunks.append((len(b), o, s)))
assert chunks == [(1024, 4096, nbd.READ_DATA)], chunks
chunks = []
h.pread_structured(65536, 2**20, lambda b, o, s, e: chunks.append(s))
assert chunks == [nbd.READ_HOLE], chunks
chunks = []
h.pread_structured(65536, 2**20, lambda b, o, s, e: chunks.append(s), nbd.CMD_FLAG_DF)
assert chunks == [nbd.READ_DATA], chunks
seen = []
h.block_status(h.get_size(), 0, lambda m, o, e, err: seen.append((m, o, e)), nbd.CMD_FLAG_REQ_ONE)
assert seen == [("base:allocation", 0, [65536, 0])], seen
`;
    assert.equal(await libnbd(uri, script + structured), "fine\n");
    const fua = store.seen.filter((entry) => entry.flags & RequestFlag.forceUnitAccess);
    assert.deepEqual(
      fua.map((entry) => entry.operation),
      [Operation.write, Operation.writeZeroes, Operation.discard],
    );
    assert.equal(
      await libnbd(uri, `assert not h.get_structured_replies_negotiated()${script}`, simple),
      "fine\n",
    );
    store.slowZeroes = true;
    assert.equal(
      await libnbd(uri, 'fails("ENOTSUP", lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO))'),
      "fine\n",
    );
    store.failWith = Errno.ENOSPC;
    assert.equal(await libnbd(uri, 'fails("ENOSPC", lambda: h.pread(512, 0))'), "fine\n");
    assert.equal(await libnbd(uri, 'fails("ENOSPC", lambda: h.pread(512, 0))', simple), "fine\n");
    store.failWith = 0;
  });

  test("a disk that may only be read says so, and refuses the rest", async () => {
    await using served = await serve(MiB, { readOnly: true });
    const script = `
assert h.is_read_only()
fails("EPERM", lambda: h.pwrite(bytes(512), 0))
fails("EPERM", lambda: h.zero(512, 0))
fails("EPERM", lambda: h.trim(512, 0))
assert h.pread(512, 0) == bytes(512)
`;
    assert.equal(await libnbd(served.uri, script), "fine\n");
    assert.ok(served.store.seen.every(({ operation }) => operation !== Operation.write));
  });

  test("clients of the oldest newstyle, without NO_ZEROES and GO, are served", async () => {
    await using served = await serve(MiB);
    const before = "h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)";
    const script = `h.pwrite(b"x" * 512, 512)
assert h.pread(512, 512) == b"x" * 512`;
    assert.equal(await libnbd(served.uri, script, before), "fine\n");
    assert.equal(await libnbd(served.uri, script, "h.set_handshake_flags(0)"), "fine\n");
  });

  test("close lets what is in flight finish, flushes, and answers nobody after", async () => {
    await using served = await serve(MiB);
    served.store.hold = true;
    const reading = libnbd(
      served.uri,
      `assert h.pread(4096, 0) == bytes(4096)
h.shutdown = lambda: None`,
    );
    while (served.store.heldCount === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const closed = served.server.close();
    setTimeout(() => served.store.release(), 50);
    await closed;
    assert.equal(await reading, "fine\n");
    assert.equal(served.store.seen.at(-1)?.operation, Operation.flush);
    assert.equal(served.server.counters.connections, 0);
  });

  test("close gives up on a store that does not answer, in bounded time", async () => {
    await using served = await serve(MiB, { closeTimeout: 50 });
    served.store.hold = true;
    const reading = libnbd(served.uri, "h.pread(4096, 0)");
    while (served.store.heldCount === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const closing = served.server.close();
    await assert.rejects(reading, /nbd.Error/);
    served.store.release();
    await closing;
  });

  test("exports come and go while clients are there, and one that is used goes with its last client", async () => {
    await using served = await serve(MiB);
    const { reactor, server, socket } = served;
    const second = { name: "b", store: new MemoryDouble(reactor, 2 * MiB) };
    const uri = `nbd+unix:///b?socket=${socket}`;
    assert.notEqual((await run("nbdinfo", uri)).code, 0);
    server.add(second);
    assert.throws(() => server.add(second), { code: "EINVAL" });
    assert.equal((await succeed("nbdinfo", "--size", uri)).trim(), `${2 * MiB}`);
    const user = await holdOpen(uri);
    assert.equal(server.clients(second), 1);
    let gone = false;
    const removed = server.remove(second).then(() => {
      gone = true;
    });
    assert.notEqual((await run("nbdinfo", uri)).code, 0);
    assert.equal(gone, false);
    user.leave();
    await removed;
    assert.equal(server.clients(second), 0);
    assert.equal((await succeed("nbdinfo", "--size", served.uri)).trim(), `${MiB}`);
  });

  test("an export that is taken back by force leaves its clients without it, and others with theirs", async () => {
    await using served = await serve(MiB);
    const { reactor, server, socket, uri } = served;
    const second = { name: "b", store: new MemoryDouble(reactor, MiB) };
    server.add(second);
    const other = await holdOpen(uri);
    const user = await holdOpen(`nbd+unix:///b?socket=${socket}`);
    const waited = server.remove(second);
    await server.remove(second, { force: true });
    assert.match(await user.ended, /server disconnected|Connection reset|closed|shutdown/i);
    await waited;
    other.leave();
    assert.equal(await other.ended, "");
  });

  test("a server without an export says so to each client, until there is one", async () => {
    const reactor = new Reactor();
    await using folder = await temporaryFolder();
    await using server = new NbdServer([], { reactor });
    const { uri } = await server.listen({ path: folder.file("nbd.sock") });
    assert.notEqual((await run("nbdinfo", uri)).code, 0);
    server.add({ name: "a", store: new MemoryDouble(reactor, MiB) });
    assert.equal((await succeed("nbdinfo", "--size", uri)).trim(), `${MiB}`);
  });

  test("two exports of one name are the caller's mistake", () => {
    const reactor = new Reactor();
    const store = new MemoryDouble(reactor, MiB);
    const twice = [
      { name: "a", store },
      { name: "a", store },
    ];
    assert.throws(() => new NbdServer(twice, { reactor }), { code: "EINVAL" });
  });
});

const simple = "h.set_request_structured_replies(False)";
