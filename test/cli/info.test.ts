/** `vbdkit info`: a disk nobody serves, and a running server found by folder, socket, URI, option and environment. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { open, stat, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { ServerInfo } from "../../src/cli/server-info.ts";
import { shows } from "../../src/testing/index.ts";
import {
  cleanEnvironment,
  type Served,
  serve,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

test("info of a sparse file tells size, blocks and extents", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  await using file = await open(image, "w");
  await file.truncate(2 ** 20);
  await file.write(Buffer.alloc(65536, 1), 0, 65536, 2 ** 18);
  const { stdout, code } = await vbdkit(["info", "--json", image]);
  const info = JSON.parse(stdout);
  assert.equal(code, 0);
  assert.equal(info.size, 2 ** 20);
  assert.equal(info.extents.data, 65536);
  assert.equal(info.extents.data + info.extents.hole + info.extents.zero, 2 ** 20);
  assert.match((await vbdkit(["info", image])).stdout, /size +1 MiB \(1048576 bytes\)/);
  const { stdout: map } = await vbdkit(["info", "--map", image]);
  assert.match(map, /^ *262144 +65536 +0 +data$/m);
});

test("info says what the disk is, not how it was opened, beside a server that writes to it", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  await writeFile(image, Buffer.alloc(4096));
  await using served = await serve(["-r", "-U", folder.file("a.sock"), image]);
  assert.match((await vbdkit(["info", served.info.uri])).stdout, /read-only +yes/);
  assert.match((await vbdkit(["info", "memory", "1M"])).stdout, /read-only +no/);
  const { stdout, stderr } = await vbdkit(["info", image]);
  assert.match(stdout, /read-only +no/);
  assert.equal(stderr, "");
  const socket = await vbdkit(["info", folder.file("a.sock")]);
  assert.match(socket.stderr, /a\.sock: is a socket; .*nbd\+unix:\/\/\/\?socket=\/.*\n$/);
  assert.equal(socket.code, 2);
  const map = await vbdkit(["info", "--map", served.info.directory]);
  assert.match(map.stderr, /^vbdkit: --map is of a disk: .*a\.sock'?\n$/);
});

test(
  "info of a server tells which disk is behind a vbd, and whether it may be written to",
  shows(["4.9.2"], async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("a.img");
    await writeFile(image, Buffer.alloc(4096));
    for (const readOnly of [true, false]) {
      await using served = await serve([...(readOnly ? ["-r"] : []), image]);
      const { directory } = served.info;
      const { stdout } = await vbdkit(["info", "--json", directory]);
      const { disk, attachment } = (JSON.parse(stdout) as ServerInfo).disks[0]!;
      assert.equal(disk, image);
      assert.equal(attachment.negotiated.readOnly, readOnly);
      const { stdout: text } = await vbdkit(["info", directory]);
      assert.ok(text.includes(image), text);
      assert.match(text, readOnly ? /^ *read only +yes$/m : /^ *read only +no$/m);
    }
  }),
);

test("info of an image that a server has locked for writing", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("a.img");
  await writeFile(image, Buffer.alloc(4096));
  await using _served = await serve([image]);
  const { stdout, stderr, code } = await vbdkit(["info", image]);
  assert.equal(stderr, "");
  assert.match(stdout, /read-only +no/);
  assert.equal(code, 0);
});

describe("info of a running server", { concurrency: 2 }, () => {
  let served: Served;
  before(async () => {
    served = await serve(["memory", "1M"]);
  });
  after(() => served[Symbol.asyncDispose]());

  test("finds it by folder, socket, URI, option and environment", async () => {
    const { directory, uri, xenstoreSocket } = served.info;
    const ways: [string[], NodeJS.ProcessEnv][] = [
      [[directory], {}],
      [[xenstoreSocket], {}],
      [[uri], {}],
      [["--machine", directory], {}],
      [[], { VBDKIT_MACHINE: directory }],
    ];
    for (const [words, environment] of ways) {
      const env = cleanEnvironment(environment);
      const { stdout, stderr } = await vbdkit(["info", "--json", ...words], { env });
      assert.equal(stderr, "");
      assert.equal((JSON.parse(stdout) as ServerInfo).pid, served.child.pid);
    }
  });

  test("reads the counters as they are now", async () => {
    const counters = async () => {
      const { stdout } = await vbdkit(["info", "--json", served.info.directory]);
      return (JSON.parse(stdout) as ServerInfo).disks[0]!.attachment;
    };
    const earlier = await counters();
    const write = ["-f", "raw", "-c", "write 0 64k", served.info.uri];
    assert.equal(spawnSync("qemu-io", write).status, 0);
    const later = await counters();
    assert.ok(later.ring.requestsProduced > earlier.ring.requestsProduced);
    assert.equal(later.ring.requestsProduced, later.ring.responsesProduced);
    assert.ok(later.backend.grants.mapped > 0);
  });

  test("has keys without spaces in JSON, and words for people", async () => {
    const { stdout } = await vbdkit(["info", "--json", served.info.directory]);
    assert.match(stdout, /"freezes": \{\s+"commandShortage": \d+,\s+"pageShortage": /);
    assert.doesNotMatch(stdout, /^ *"[^"]* [^"]*":/m);
    const { stdout: text } = await vbdkit(["info", "--verbose", served.info.directory]);
    assert.match(text, /command shortage +\d/);
  });

  test("prints the same for people", async () => {
    const { stdout } = await vbdkit(["info", served.info.directory]);
    assert.match(stdout, /^vbdkit \d.*, process \d+$/m);
    assert.match(stdout, /ring pages +\d/);
    assert.match(stdout, /export +\(default\)/);
    assert.ok(stdout.split("\n").length < 50, "brief");
    const { stdout: long } = await vbdkit(["info", "--verbose", served.info.directory]);
    assert.match(long, /offered/);
    assert.ok(long.length > 2 * stdout.length);
  });

  test("asks a socket that only we may open, and that answers nonsense with an error", async () => {
    const path = join(served.info.directory, "control.sock");
    assert.equal((await stat(path)).mode & 0o777, 0o600);
    for (const line of ["nonsense", "{}", '{"request":"stop"}', '{"request":"__proto__"}']) {
      const socket = connect(path);
      socket.write(`${line}\n`);
      let text = "";
      for await (const chunk of socket.setEncoding("utf8")) text += chunk;
      assert.equal(typeof JSON.parse(text).error, "string", line);
    }
  });

  test("says so where no server runs", async () => {
    const { stderr, code } = await vbdkit(["info", "--machine", "/nowhere"]);
    assert.equal(stderr, "vbdkit: /nowhere: no server runs there\n");
    assert.equal(code, 2);
  });
});
