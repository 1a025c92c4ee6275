/** The life of a machine's guests from a second terminal: made, suspended, saved, restored, moved, shut down, destroyed;
 * and what is said of disks meanwhile. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { after, before, test } from "node:test";
import { askServer } from "../../src/cli/control.ts";
import type { ListedDomain } from "../../src/cli/disk-list.ts";
import type { ArrivedDomain } from "../../src/cli/guest-answers.ts";
import { Machine } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { startMachine, type TestMachine } from "../support/machine.ts";

let machine: TestMachine;
let other: TestMachine;
before(async () => {
  [machine, other] = await Promise.all([startMachine("first"), startMachine("first")]);
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
});

/** A guest with an image as xvda, in which a page is written; the URI of its disk. */
async function guestWithDisk(name: string, more: readonly string[] = []): Promise<string> {
  writeFileSync(machine.folder.file(`${name}.img`), Buffer.alloc(2 ** 20));
  assert.match(await machine.okay("create", name), new RegExp(`^${name} \\(\\d+\\) runs\n$`));
  const said = await machine.okay("attach", name, `${name}.img,raw,xvda`, ...more);
  const uri = said.trim().split(" ").at(-1)!;
  io(uri, "write -P 0x5a 4k 4k");
  return uri;
}

function io(uri: string, command: string): void {
  const { status, stdout } = spawnSync("qemu-io", ["-f", "raw", "-c", command, uri], {
    encoding: "utf8",
  });
  assert.equal(status, 0, stdout);
  assert.doesNotMatch(stdout, /failed/);
}

async function listed(on: TestMachine, name: string): Promise<ListedDomain> {
  return JSON.parse(await on.okay("list", "--json", name))[0];
}

async function refused(on: TestMachine, message: RegExp, ...words: string[]): Promise<void> {
  const { code, stderr, stdout } = await on.run(...words);
  assert.match(stderr, /^vbdkit: [^\n]*\n$/, words.join(" "));
  assert.match(stderr, message);
  assert.deepEqual([code, stdout], [1, ""], words.join(" "));
}

test("a suspended guest says so, keeps its disks, and refuses what it could not take part in", async () => {
  const uri = await guestWithDisk("still");
  assert.match(await machine.okay("suspend", "still"), /^still \(\d+\) is suspended\n$/);
  assert.equal((await listed(machine, "still")).state, "suspend");
  assert.match(await machine.okay("list", "still"), /^still +\d+ +suspend +xvda /m);
  const helps = /still is suspended; vbdkit resume still lets it run on/;
  await refused(machine, helps, "attach", "still", "vdev=xvdb,target=memory 1M");
  await refused(machine, helps, "detach", "still", "xvda");
  await refused(machine, helps, "resize", "still", "xvda", "2M");
  await refused(machine, helps, "suspend", "still");
  await refused(machine, helps, "shutdown", "still");
  assert.match(await machine.okay("resume", "still"), /^still \(\d+\) runs\n$/);
  await refused(machine, /still runs already/, "resume", "still");
  io(uri, "read -P 0x5a 4k 4k");
  // A disk goes from one that is suspended where force is used.
  await machine.okay("suspend", "still");
  assert.equal(await machine.okay("detach", "--force", "still", "xvda"), "");
  await machine.okay("resume", "still");
  assert.deepEqual((await listed(machine, "still")).disks, []);
});

test("a guest is saved and restored, also under another name and on a copy of its disk", async () => {
  const uri = await guestWithDisk("keeper");
  assert.equal(
    await machine.okay("save", "--checkpoint", "keeper", "keeper.saved"),
    `keeper (${(await listed(machine, "keeper")).domid}) is saved in keeper.saved\n`,
  );
  io(uri, "read -P 0x5a 4k 4k");
  copyFileSync(machine.folder.file("keeper.img"), machine.folder.file("copy.img"));
  const twin: ArrivedDomain = JSON.parse(
    await machine.okay(
      ...["restore", "keeper.saved", "--json"],
      ...["--name", "twin", "--disk", "vdev=xvda,target=copy.img"],
    ),
  );
  assert.deepEqual([twin.name, twin.state, twin.inherited], ["twin", "running", 0]);
  io(twin.disks[0]!.uri!, "read -P 0x5a 4k 4k");
  io(uri, "write -P 0x11 4k 4k");
  io(twin.disks[0]!.uri!, "read -P 0x5a 4k 4k");
  await refused(machine, /there is a guest keeper already/, "restore", "keeper.saved");
  await machine.okay("save", "keeper", "keeper.saved");
  await refused(machine, /there is no domain "keeper"/, "list", "keeper");
  assert.match(
    await machine.okay("restore", "keeper.saved"),
    /^keeper \(\d+\) runs\n {2}xvda: 1 MiB, nbd\+unix:\/\/\/keeper\/xvda\?socket=.*\n$/,
  );
  io(uri, "read -P 0x11 4k 4k");
  await refused(machine, /copy\.img/, "attach", "keeper", "copy.img,raw,xvdb");
});

test("a guest that is saved to be left suspended is there, and runs on when it is resumed", async () => {
  const uri = await guestWithDisk("paused");
  await machine.okay("save", "--pause", "paused", "paused.saved");
  assert.ok(existsSync(machine.folder.file("paused.saved")));
  assert.equal((await listed(machine, "paused")).state, "suspend");
  await machine.okay("resume", "paused");
  io(uri, "read -P 0x5a 4k 4k");
});

test("a save that fails leaves the guest running, and a file that is none makes no guest", async () => {
  const uri = await guestWithDisk("lucky");
  await refused(machine, /no such file/, "save", "lucky", "missing/lucky.saved");
  assert.equal((await listed(machine, "lucky")).state, "running");
  io(uri, "read -P 0x5a 4k 4k");
  const guests = await machine.list();
  const { code, stderr } = await machine.run("restore", "lucky.img");
  assert.match(stderr, /^vbdkit: [^\n]*\n$/);
  assert.equal(code, 2);
  await refused(machine, /no such file/, "restore", "nothing.saved");
  assert.deepEqual(await machine.list(), guests);
  await machine.okay("attach", "lucky", "vdev=xvdb,target=memory 1M");
  const { stderr: note } = await machine.run("save", "lucky", "lucky.saved");
  assert.equal(
    note,
    "vbdkit: xvdb (memory 1M) is empty when it is restored: its contents are not saved\n",
  );
});

test("a guest moves to another machine with its disks, and stays where it is not taken", async () => {
  const uri = await guestWithDisk("nomad");
  const there = other.served.info.directory;
  await refused(
    machine,
    /there is a guest first already/,
    "migrate",
    "nomad",
    there,
    "--name",
    "first",
  );
  assert.equal((await listed(machine, "nomad")).state, "running");
  io(uri, "read -P 0x5a 4k 4k");
  assert.match(
    await machine.okay("migrate", "nomad", there),
    /^nomad \(\d+\) runs\n {2}xvda: 1 MiB, nbd\+unix:.*\n$/,
  );
  await refused(machine, /there is no domain "nomad"/, "list", "nomad");
  const [disk] = (await listed(other, "nomad")).disks;
  io(disk!.uri!, "read -P 0x5a 4k 4k");
  io(disk!.uri!, "write -P 0x22 4k 4k");
  await refused(machine, /there is no domain "nomad"/, "migrate", "nomad", there);
  assert.match(await other.okay("shutdown", "nomad"), /^nomad \(\d+\) is shut down\n$/);
  assert.equal(readFileSync(machine.folder.file("nomad.img"))[4096], 0x22);
  assert.deepEqual(
    (await other.list()).map(({ name }) => name),
    ["first"],
  );
});

test("a guest that is refused while it is sent hears why, and runs on", async () => {
  await using here = await Machine.start({ reactor: new Reactor() });
  const guest = await here.createGuest({ name: "first", memoryPages: 4096 });
  guest.allocate(4000)!.region.bytes.fill(1);
  const server = createServer();
  const socket = machine.folder.file("sender.sock");
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const connected = once(server, "connection");
  const received = askServer(other.served.info.directory, "receive", { fields: { socket } });
  const refused = assert.rejects(received, /there is a guest first already/);
  const [stream] = (await connected) as [Socket];
  server.close();
  await assert.rejects(guest.migrate(stream), { code: "ECONNREFUSED" });
  assert.equal(guest.state, "running");
  stream.destroy();
  await refused;
});

test("a machine with a suspended guest ends when it is asked to", async () => {
  await using ending = await startMachine("still");
  await ending.okay("attach", "still", "vdev=xvda,target=memory 1M");
  await ending.okay("suspend", "still");
  ending.served.child.kill("SIGTERM");
  const { code, stderr } = await ending.served.outcome;
  assert.deepEqual([code, stderr], [0, ""]);
});

test("a destroyed guest is gone whatever it did, and its name may be used again", async () => {
  const slow = ["--link", "worker"];
  await machine.okay("create", "doomed");
  const target = "vdev=xvda,target=--filter delay memory 1M rdelay=3600s";
  const said = await machine.okay("attach", "doomed", target, ...slow);
  const uri = said.trim().split(" ").at(-1)!;
  await machine.okay("suspend", "doomed");
  assert.match(await machine.okay("destroy", "doomed"), /^doomed \(\d+\) is gone\n$/);
  assert.notEqual(spawnSync("nbdinfo", [uri]).status, 0);
  await machine.okay("create", "doomed");
  await refused(machine, /there is a guest doomed already/, "create", "doomed");
  const { code, stderr } = await machine.run("create", "7");
  assert.match(stderr, /"7" is no name for a domain/);
  assert.equal(code, 2);
});

test("what a guest's life is asked for is named as elsewhere where it is wrong", async () => {
  for (const words of [["destroy"], ["suspend"], ["resume"], ["save"], ["migrate"]]) {
    const more = words[0] === "save" ? ["x.saved"] : [];
    if (words[0] === "migrate") more.push(other.served.info.directory);
    await refused(
      machine,
      /there is no domain "frist"; did you mean "first"\?/,
      ...words,
      "frist",
      ...more,
    );
  }
  const { code, stderr } = await machine.run("migrate", "first", "/nowhere");
  assert.deepEqual([code, stderr], [2, "vbdkit: /nowhere: no machine runs there\n"]);
  const twice = await machine.run("restore", "x", "--disk", "a,,xvda", "--disk", "b,,xvda");
  assert.deepEqual([twice.code, twice.stderr], [2, "vbdkit: --disk: xvda is given twice\n"]);
});
