/** The xenstore's state in a file: what comes back from it, and what a file may be like without harm. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { test } from "node:test";
import { SeededRandom } from "../../../src/util/random.ts";
import {
  XS_DIRECTORY_PART,
  XS_INTRODUCE,
  XS_SET_FEATURE,
  XS_SET_QUOTA,
  XS_SET_TARGET,
  XS_WATCH,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import type { XenError } from "../../../src/xen/domain.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { XenStoreDaemon, type XenStoreStateOptions } from "../../../src/xen/xenstore/daemon.ts";
import { StateFile } from "../../../src/xen/xenstore/state-file.ts";
import { OperationWriter } from "../../../src/xen/xenstore/state-operations.ts";
import { RawClient } from "./raw-client.ts";
import { fastFolder, wholeTree } from "./whole-tree.ts";

function daemonOf(file: string, options: Partial<XenStoreStateOptions> = {}): XenStoreDaemon {
  return new XenStoreDaemon({ state: { file, ...options } });
}

/** The tree that a daemon has which begins with a file of these bytes; or the message of why none does. */
async function treeIn(file: string, bytes: Uint8Array): Promise<string[] | string> {
  writeFileSync(file, bytes);
  const before = readFileSync(file);
  try {
    await using daemon = daemonOf(file);
    return await wholeTree(daemon);
  } catch (error) {
    assert.equal((error as XenError).code, "EINVAL", String(error));
    assert.ok(readFileSync(file).equals(before), "a file that is refused is left as it is");
    return (error as Error).message;
  }
}

/** A small file, and the tree after each of its turns. */
async function smallFile(file: string): Promise<{ bytes: Buffer; trees: string[][] }> {
  await using daemon = daemonOf(file);
  const client = new XenStoreClient(daemon.connect(0));
  const trees = [await wholeTree(daemon)];
  for (const step of [
    () => client.write("/a/b", "one"),
    () => client.setPermissions("/a/b", [{ domid: 3, access: "read" }]),
    () => client.write("/a/c", "two"),
    () => client.remove("/a/b"),
  ]) {
    await step();
    trees.push(await wholeTree(daemon));
  }
  return { bytes: readFileSync(file), trees };
}

test("nodes, values, permissions and their order are there again after a stop", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  let before: string[];
  {
    await using daemon = daemonOf(file);
    const client = new XenStoreClient(daemon.connect(0));
    await client.write(
      "/z",
      Uint8Array.from({ length: 256 }, (_, i) => i),
    );
    await client.write("/a/b/c", "deep");
    await client.transaction(async (operations) => {
      await operations.write("/t", "1");
      await operations.remove("/a/b");
    });
    await client.setPermissions("/t", [
      { domid: 0, access: "none" },
      { domid: 7, access: "both" },
    ]);
    await client.setPermissions("@releaseDomain", [{ domid: 0, access: "read" }]);
    before = await wholeTree(daemon);
  }
  assert.equal(statSync(file).mode & 0o777, 0o600);
  for (let start = 0; start < 2; start++) {
    await using daemon = daemonOf(file);
    assert.deepEqual(await wholeTree(daemon), before);
  }
  assert.ok(before.includes("/t n0,b7 = 31"), before.join("\n"));
});

test("domains, their targets, features and limits are there again, and what was of a domain is its own", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  {
    await using daemon = daemonOf(file);
    const raw = new RawClient(daemon.connect(0));
    assert.equal(await raw.ask(XS_SET_FEATURE, ["5", "2"]), "OK");
    for (const domid of ["5", "6", "7"]) {
      assert.equal(await raw.ask(XS_INTRODUCE, [domid, "1", "1"]), "OK");
    }
    assert.equal(await raw.ask(XS_SET_TARGET, ["6", "5"]), "OK");
    assert.equal(await raw.ask(XS_SET_QUOTA, ["5", "nodes", "2"]), "OK");
    assert.equal(await raw.ask(XS_SET_QUOTA, ["watches", "0"]), "OK");
    const client = new XenStoreClient(daemon.connect(0));
    await client.mkdir("/mine");
    await client.setPermissions("/mine", [{ domid: 5, access: "none" }]);
    daemon.shutdown(7);
    daemon.release(7);
  }
  await using daemon = daemonOf(file);
  assert.deepEqual(daemon.introduced, [0, 5, 6]);
  const five = new XenStoreClient(daemon.connect(5));
  const target = new XenStoreClient(daemon.connect(6));
  await target.write("/mine/x", "written by the domain that serves 5");
  await five.write("/mine/y", "");
  await assert.rejects(five.write("/mine/z", ""), { code: "ENOSPC" });
  const raw = new RawClient(daemon.connect(5));
  for (let i = 0; i < 200; i++) assert.equal(await raw.ask(XS_WATCH, ["/mine", `${i}`]), "OK");
  assert.equal(await raw.ask(XS_WATCH, ["/mine", "d", "1"]), "EINVAL", "it has no depth");
});

test("a domain that is no more when the daemon begins again has left nothing", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  {
    await using daemon = daemonOf(file);
    daemon.introduce(5);
    daemon.introduce(6);
    const client = new XenStoreClient(daemon.connect(0));
    await client.write("/of5", "");
    await client.setPermissions("/of5", [{ domid: 5, access: "none" }]);
  }
  await using daemon = new XenStoreDaemon({
    state: { file },
    domainExists: (domid) => domid === 6,
  });
  assert.deepEqual(daemon.introduced, [0, 6]);
  const client = new XenStoreClient(daemon.connect(0));
  assert.equal(await client.read("/of5"), undefined);
});

test("a listing in parts that a restart cuts in two is begun again", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  const generation = async (daemon: XenStoreDaemon) =>
    (await new RawClient(daemon.connect(0)).ask(XS_DIRECTORY_PART, ["/", "0"])).split("\0")[0];
  const seen = new Set<string | undefined>();
  for (let start = 0; start < 4; start++) {
    await using daemon = daemonOf(file);
    const client = new XenStoreClient(daemon.connect(0));
    for (let i = 0; i < 3; i++) {
      const now = await generation(daemon);
      assert.ok(!seen.has(now), `generation ${now} is used twice`);
      seen.add(now);
      await client.write(`/n${start}-${i}`, "");
    }
  }
});

test("no second daemon has the file while one does, and the file's mode and place are kept", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  {
    await using daemon = daemonOf(file);
    assert.throws(() => daemonOf(file), { code: "EBUSY", message: /another daemon/ });
    await new XenStoreClient(daemon.connect(0)).write("/a", "1");
  }
  chmodSync(file, 0o666);
  const link = folder.file("link");
  symlinkSync(file, link);
  await using daemon = daemonOf(link);
  assert.equal(await new XenStoreClient(daemon.connect(0)).read("/a"), "1");
  assert.equal(statSync(file).mode & 0o777, 0o600);
});

test("what a daemon left that was killed while it made a shorter file is no part of the state", async () => {
  await using folder = await fastFolder();
  const { bytes, trees } = await smallFile(folder.file("small"));
  const whole = trees.at(-1);
  for (const left of [Buffer.alloc(0), bytes.subarray(0, 7), bytes.subarray(0, 60), bytes]) {
    const file = folder.file("state");
    writeFileSync(file, bytes);
    // Before the rename it has the beginning of the same, or all of it.
    writeFileSync(`${file}.new`, left);
    await using daemon = daemonOf(file);
    assert.deepEqual(await wholeTree(daemon), whole);
    assert.ok(!existsSync(`${file}.new`));
  }
  // There was no state yet: half of one is none.
  writeFileSync(folder.file("first.new"), bytes);
  await using daemon = daemonOf(folder.file("first"));
  assert.equal(await new XenStoreClient(daemon.connect(0)).read("/a"), undefined);
});

test("what lies in the way of a shorter file is not touched, and refused at once", async () => {
  await using folder = await fastFolder();
  const [file, precious] = [folder.file("state"), folder.file("precious")];
  const way = `${file}.new`;
  writeFileSync(precious, "precious");
  const ways: [string, () => void][] = [
    ["a link", () => symlinkSync(precious, way)],
    ["a folder", () => mkdirSync(way)],
    ["a pipe", () => execFileSync("mkfifo", [way])],
  ];
  for (const [what, make] of ways) {
    make();
    assert.throws(() => daemonOf(file), { code: /ELOOP|EISDIR|EINVAL/, message: /^[^\n]*$/ }, what);
    assert.equal(readFileSync(precious, "utf8"), "precious");
    rmSync(way, { recursive: true });
  }
  execFileSync("mkfifo", [file]);
  assert.throws(() => daemonOf(file), { code: "EINVAL", message: /not a file/ });
  assert.throws(() => daemonOf("/dev/zero"), { code: /EINVAL|EACCES/ });
});

test("a folder that is not there, a folder, and a file of another kind are refused in one line", async () => {
  await using folder = await fastFolder();
  assert.throws(() => daemonOf(folder.file("no/state")), { code: "ENOENT" });
  assert.throws(() => daemonOf(folder.file(".")), { code: /EISDIR|EINVAL/ });
  for (const content of ["", "x", "vbdkitxs", "another file, longer than a header"]) {
    writeFileSync(folder.file("other"), content);
    assert.throws(() => daemonOf(folder.file("other")), { code: "EINVAL", message: /^[^\n]*$/ });
    assert.equal(readFileSync(folder.file("other"), "utf8"), content);
  }
});

test("a file cut off anywhere is a turn that was whole, or is refused", async () => {
  await using folder = await fastFolder();
  const { bytes, trees } = await smallFile(folder.file("state"));
  const all = trees.map((tree) => tree.join("\n"));
  let last = -1;
  for (let length = 0; length <= bytes.length; length++) {
    const found = await treeIn(folder.file("cut"), bytes.subarray(0, length));
    if (typeof found === "string") {
      assert.equal(last, -1, `${length} bytes: ${found}`);
      continue;
    }
    const turn = all.indexOf(found.join("\n"));
    assert.ok(turn >= last && turn <= last + 1, `${length} bytes: turn ${turn} after ${last}`);
    last = turn;
  }
  assert.equal(last, trees.length - 1);
});

test("a wrong byte anywhere is found: the last turn is left out, or the file is refused", async () => {
  await using folder = await fastFolder();
  const { bytes, trees } = await smallFile(folder.file("state"));
  const before = trees.at(-2)!;
  let left = 0;
  for (let at = 0; at < bytes.length; at++) {
    for (const flip of [0x01, 0x80]) {
      const damaged = Buffer.from(bytes);
      damaged[at]! ^= flip;
      const found = await treeIn(folder.file("flipped"), damaged);
      if (typeof found === "string") continue;
      assert.deepEqual(found, before, `byte ${at}`);
      left++;
    }
  }
  assert.ok(left > 0 && left < 200, `${left} of ${bytes.length * 2}`);
});

test("what a guest writes into its nodes cannot look like a record behind a damaged end", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  const notes: string[] = [];
  {
    await using daemon = daemonOf(file);
    const client = new XenStoreClient(daemon.connect(0));
    await client.write("/a", "1");
    // A record of another file, with its header.
    const other = folder.file("other");
    await smallFile(other);
    await client.write("/b", readFileSync(other).subarray(20, 1500));
  }
  const bytes = readFileSync(file);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(file, bytes);
  await using daemon = daemonOf(file, { onNote: (line) => notes.push(line) });
  assert.equal(await new XenStoreClient(daemon.connect(0)).read("/b"), undefined);
  assert.equal(await new XenStoreClient(daemon.connect(0)).read("/a"), "1");
  assert.match(notes.join("\n"), /^[^\n]*state: \d+ bytes at the end [^\n]*$/);
});

test("records that no daemon writes are damage, whatever their check sums say", async () => {
  await using folder = await fastFolder();
  const permissions = [{ domid: 0, access: "none" }] as const;
  const empty = new Uint8Array(0);
  const deep = `/${"a/".repeat(1600)}a`;
  const hostile: ((writer: OperationWriter) => void)[] = [
    (writer) => writer.create("/no/parent", permissions, empty),
    (writer) => writer.create("/", permissions, empty),
    (writer) => writer.create("/tool/../x", permissions, empty),
    (writer) => writer.create("@made", permissions, empty),
    (writer) => writer.create(deep, permissions, empty),
    (writer) => writer.create("/big", permissions, new Uint8Array(5000)),
    (writer) => writer.create("/none", [] as never, empty),
    (writer) => writer.setValue("/not/there", empty),
    (writer) => writer.remove("/"),
    (writer) => writer.remove("@releaseDomain"),
    (writer) => writer.generation(Number.NaN),
    (writer) => writer.limit("nodes", -1),
    (writer) => writer.limit("nothing" as "nodes", 1),
    (writer) => writer.forget(70000),
    (writer) => writer.unwatch(1, "/a", "t"),
    (writer) => writer.watch(1, { path: "/a//b", token: "t", prefix: "", depth: undefined }),
    (writer) => writer.watch(1, { path: "/a", token: "t", prefix: "/b/", depth: undefined }),
    (writer) => writer.sent(1, { answers: 1, start: 0, bytes: empty }),
    (writer) =>
      writer.ring(1, {
        ...{ consumed: 0, rest: empty, behind: false, transactions: [] },
        answers: [new Uint8Array(17)],
      }),
    (writer) => writer.complete(),
  ];
  for (const [index, write] of hostile.entries()) {
    const file = folder.file(`hostile${index}`);
    await daemonOf(file)[Symbol.asyncDispose]();
    {
      using state = StateFile.open(file)!;
      while (state.next() !== undefined);
      const writer = new OperationWriter();
      write(writer);
      state.append(writer.take());
    }
    const bytes = readFileSync(file);
    assert.throws(
      () => daemonOf(file),
      { code: "EINVAL", message: /damaged at record 2: / },
      `${index}`,
    );
    assert.ok(readFileSync(file).equals(bytes));
  }
});

test("records of random bytes with right check sums are refused, or are a xenstore", async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.log(`seed ${seed}`);
  const random = new SeededRandom(seed);
  await using folder = await fastFolder();
  const { bytes } = await smallFile(folder.file("small"));
  writeFileSync(folder.file("source"), bytes);
  const records: Buffer[] = [];
  {
    using source = StateFile.open(folder.file("source"))!;
    for (let record = source.next(); record !== undefined; record = source.next()) {
      records.push(record);
    }
  }
  for (let round = 0; round < 300; round++) {
    const file = folder.file("random");
    const state = StateFile.create(file);
    for (const record of records) {
      const changed = Buffer.from(record);
      while (random.below(3) === 0) changed[random.below(changed.length)] = random.below(256);
      state.append(
        random.below(20) === 0 ? changed.subarray(0, random.below(changed.length)) : changed,
      );
    }
    state.become(file);
    state[Symbol.dispose]();
    try {
      await using daemon = daemonOf(file);
      assert.ok((await wholeTree(daemon)).length >= 1);
    } catch (error) {
      assert.equal((error as XenError).code, "EINVAL", String((error as Error).stack));
    }
  }
});

test("more than a domain may have now is loaded all the same, and it may have no more", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  {
    await using daemon = daemonOf(file);
    const client = new XenStoreClient(daemon.connect(0));
    await client.write("/home", "");
    await client.setPermissions("/home", [{ domid: 4, access: "none" }]);
    const four = new XenStoreClient(daemon.connect(4));
    for (let i = 0; i < 20; i++) await four.write(`/home/${i}`, "x");
  }
  await using daemon = new XenStoreDaemon({ state: { file }, limits: { nodes: 5 } });
  const four = new XenStoreClient(daemon.connect(4));
  assert.equal((await four.list("/home"))?.length, 20);
  await assert.rejects(four.write("/home/more", ""), { code: "ENOSPC" });
});

test("a file that has grown is made shorter while clients go on, and has all of it", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  let before: string[];
  let most = 0;
  {
    await using daemon = daemonOf(file);
    const raw = new RawClient(daemon.connect(0));
    const value = "v".repeat(3900);
    for (let i = 0; i < 1500; i++) {
      assert.equal(await raw.raw(XS_WRITE, `/n${i % 50}\0${i}${value}`), "OK");
      most = Math.max(most, statSync(file).size);
    }
    before = await wholeTree(daemon);
    assert.ok(most < 3_000_000, `${most} bytes of six million that were written`);
  }
  await using daemon = daemonOf(file);
  assert.deepEqual(await wholeTree(daemon), before);
});
