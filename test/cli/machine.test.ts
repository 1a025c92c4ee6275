/** `vbdkit machine` and the commands around it, as a person at two terminals has them; Debian's tools look on. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { ListedDisk, ListedDomain } from "../../src/cli/disk-list.ts";
import type { ServerInfo } from "../../src/cli/server-info.ts";
import { children } from "../support/children.ts";
import { firstWords, startMachine, type TestMachine } from "../support/machine.ts";
import { cleanEnvironment, finished, serve, start, temporaryFolder } from "../support/vbdkit.ts";

const io = (uri: string, ...commands: string[]) =>
  spawnSync("qemu-io", ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri], {
    encoding: "utf8",
  });

/** An NBD client that is connected until its standard input ends. */
function stayConnected(uri: string) {
  const script = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(${JSON.stringify(uri)})
print("here", flush=True)
sys.stdin.read()
h.shutdown()
`;
  const child = spawn("/usr/bin/python3", ["-c", script], { stdio: ["pipe", "pipe", "pipe"] });
  const here = new Promise<void>((resolve) => child.stdout.once("data", () => resolve()));
  return { here, leave: () => child.stdin.end(), outcome: finished(child) };
}

/** One machine for all that do not look at its beginning and end; each test has guests of its own. */
let machine: TestMachine;
before(async () => {
  machine = await startMachine("first");
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

async function create(...names: string[]): Promise<void> {
  for (const name of names) await machine.okay("create", name);
}

/** Attaches a disk and tells its URI. */
async function attach(...words: string[]): Promise<string> {
  return (await machine.okay("attach", ...words)).trim().split(" ").at(-1)!;
}

async function disksOf(name: string): Promise<readonly ListedDisk[]> {
  const listed: ListedDomain[] = JSON.parse(await machine.okay("list", "--json", name));
  return listed[0]!.disks;
}

describe("a machine", () => {
  test("has its guests where Debian's tools look for them, and keeps running until it is told to end", async () => {
    await using served = await serve(["web", "database"], {}, "machine");
    const { info, child, outcome } = served;
    const read = (path: string) =>
      spawnSync("xenstore-read", [path], {
        encoding: "utf8",
        env: { ...process.env, XENSTORED_PATH: info.xenstoreSocket },
      }).stdout.trim();
    assert.equal(read("/local/domain/0/name"), "Domain-0");
    assert.deepEqual(
      info.domains.map(({ domid, name }) => [domid, name]),
      [
        [1, "web"],
        [2, "database"],
      ],
    );
    assert.equal(read("/local/domain/2/name"), "database");
    assert.equal(read(`${read("/local/domain/1/vm")}/name`), "web");
    child.kill("SIGTERM");
    assert.deepEqual([(await outcome).code, (await outcome).stderr], [0, ""]);
    assert.ok(!existsSync(info.directory));
  });

  test("takes disks, shows them, lets them grow and go, and what was written is in the image", async () => {
    await create("web", "database");
    const image = machine.folder.file("disk.img");
    await writeFile(image, Buffer.alloc(2 ** 20));
    // The machine is in another folder than we are.
    const said = await machine.okay("attach", "web", "disk.img,raw,xvda");
    assert.match(said, /^xvda of web: 1 MiB, nbd\+unix:\/\/\/web\/xvda\?socket=.*\n$/);
    const uri = said.trim().split(" ").at(-1)!;
    const guests = await machine.list();
    const { domid } = guests.find(({ name }) => name === "database")!;
    await machine.okay("attach", String(domid), "vdev=xvda,access=r,target=memory 1M");
    await machine.okay("attach", "web", "vdev=hdc,cdrom,backendtype=tap,target=pattern 1M");
    const disks = await disksOf("web");
    assert.deepEqual(
      disks.map(({ vdev, handle, state, access }) => [vdev, handle, state, access]),
      [
        ["hdc", 5632, "connected", "r"],
        ["xvda", 51712, "connected", "w"],
      ],
    );
    assert.match(disks[0]!.backendPath, /\/backend\/vbd3\//);
    assert.equal((await disksOf("database"))[0]!.access, "r");
    assert.equal(disks[1]!.uri, uri);
    const table = (await machine.okay("list", "web")).split("\n");
    assert.match(table[0]!, /^Name +ID +State +Vdev +BE +handle +state +evt-ch +ring-ref +size /);
    assert.match(
      table[2]!,
      /^web +\d+ +running +xvda +0 +51712 +connected +\d+ +\d+ +1 MiB +w +thread +0 /,
    );
    assert.equal(io(uri, "write -P 0x5a 4k 4k", "flush").status, 0);
    assert.equal(await machine.okay("resize", "web", "xvda", "+1M"), "xvda of web: 2 MiB\n");
    assert.equal(statSync(image).size, 2 ** 21);
    assert.equal(io(uri, "write -P 0x77 1M 4k", "flush").status, 0);
    await machine.okay("detach", "web", "51712");
    assert.deepEqual(readFileSync(image).subarray(4096, 8192), Buffer.alloc(4096, 0x5a));
    assert.equal(readFileSync(image)[2 ** 20], 0x77);
    assert.notEqual(io(uri!, "read 0 4k").status, 0);
    assert.equal(await machine.okay("list", "--names", "web"), "hdc\n");
    assert.equal(await machine.okay("list", "--names"), "first\nweb\ndatabase\n");
  });

  test("waits with a disk that is used for its last client, and takes no new ones meanwhile", async () => {
    await create("used");
    const uri = await attach("used", "vdev=xvda,target=memory 1M");
    const user = stayConnected(uri);
    await user.here;
    const detach = start(["detach", "used", "xvda"], { env: machine.env });
    assert.match(
      await firstWords(detach),
      /^vbdkit: an NBD client uses xvda of used: .*--force\n$/,
    );
    const [disk] = await disksOf("used");
    assert.deepEqual([disk!.state, disk!.clients], ["detaching", 1]);
    // As a guest that is waited for has it.
    const nodes = [`${disk!.backendPath}/online`, `${disk!.backendPath}/state`];
    assert.equal(await machine.okay("xenstore", "read", ...nodes), "0\n5\n");
    assert.notEqual(spawnSync("nbdinfo", [uri]).status, 0);
    const grow = await machine.run("resize", "used", "xvda", "+1M");
    assert.equal(grow.stderr, "vbdkit: xvda of used is being detached: its size stays\n");
    const again = await machine.run("attach", "used", "vdev=xvda,target=memory 1M");
    assert.match(again.stderr, /^vbdkit: xvda of used is being detached: it goes with its last/);
    // Whoever stops waiting does not call it off.
    detach.kill("SIGINT");
    assert.equal((await finished(detach)).code, 130);
    user.leave();
    assert.equal((await user.outcome).code, 0);
    while ((await disksOf("used")).length > 0);
  });

  test("a guest with a disk that waits for its last client can be stopped, saved, moved and ended all the same", async () => {
    const leaving = async (name: string) => {
      await create(name);
      await writeFile(machine.folder.file(`${name}.img`), Buffer.alloc(2 ** 20));
      const user = stayConnected(await attach(name, `${name}.img,raw,xvda`));
      await user.here;
      const child = start(["detach", name, "xvda"], { env: machine.env });
      await firstWords(child);
      return { user, detached: finished(child) };
    };
    const stays = await leaving("stays");
    await machine.okay("suspend", "stays");
    await machine.okay("resume", "stays");
    await machine.okay("save", "--checkpoint", "stays", "stays.saved");
    // It has been without its backend when it comes back.
    const moved = await machine.run("migrate", "stays", machine.served.info.directory);
    assert.match(moved.stderr, /stays was not taken: there is a guest stays already/);
    const [disk] = await disksOf("stays");
    assert.deepEqual([disk!.state, disk!.clients], ["detaching", 1]);
    stays.user.leave();
    assert.equal((await stays.detached).code, 0);
    assert.deepEqual(await disksOf("stays"), []);

    const saved = await leaving("saved");
    await machine.okay("save", "saved", "saved.saved");
    assert.equal((await saved.detached).code, 0);
    await machine.okay("restore", "saved.saved");
    assert.equal((await disksOf("saved"))[0]!.state, "connected");
    assert.equal(await machine.okay("detach", "saved", "xvda"), "");

    const ended = await leaving("ended");
    await machine.okay("destroy", "ended");
    assert.equal((await ended.detached).code, 0);

    const off = await leaving("off");
    const shutdown = start(["shutdown", "off"], { env: machine.env });
    assert.match(await firstWords(shutdown), /an NBD client uses xvda of off/);
    const shut = finished(shutdown);
    off.user.leave();
    assert.deepEqual([(await shut).code, (await off.detached).code], [0, 0]);
    for (const { user } of [stays, saved, ended, off]) {
      user.leave();
      await user.outcome;
    }
  });

  test("takes a disk away from its clients by force, and leaves others alone", async () => {
    await create("forced");
    const uris: string[] = [];
    for (const vdev of ["xvda", "xvdb"]) {
      uris.push(await attach("forced", `vdev=${vdev},target=memory 1M`));
    }
    const users = uris.map(stayConnected);
    for (const { here } of users) await here;
    assert.equal(await machine.okay("detach", "--force", "forced", "xvda"), "");
    assert.deepEqual(
      (await disksOf("forced")).map(({ vdev, clients }) => [vdev, clients]),
      [["xvdb", 1]],
    );
    for (const { leave } of users) leave();
    assert.equal((await users[1]!.outcome).code, 0);
    await users[0]!.outcome;
  });

  test("shows a backend process that was killed as dead, and the others carry on", async () => {
    await create("lost");
    const before = children(machine.served.info.pid);
    for (const link of ["thread", "process"]) {
      await attach("lost", `vdev=xvd${link[0]},target=memory 1M`, "--link", link);
    }
    const [pid] = children(machine.served.info.pid).filter((each) => !before.includes(each));
    process.kill(pid!, "SIGKILL");
    let disks = await disksOf("lost");
    while (!disks.some(({ state }) => state === "dead")) disks = await disksOf("lost");
    for (const { vdev, state, uri } of disks) {
      assert.equal(state === "dead", vdev === "xvdp");
      assert.equal(io(uri!, "read 0 4k").stdout.includes("failed"), state === "dead");
    }
    assert.match(await machine.okay("list", "lost"), /\nxvdp of lost: .+\n$/);
    await machine.okay("stats");
    await machine.okay("info");
    await machine.okay("detach", "lost", "xvdp");
    await attach("lost", "vdev=xvdp,target=memory 1M", "--link", "process");
    assert.ok((await disksOf("lost")).every(({ state }) => state === "connected"));
  });

  test("knobs, filters and another home for the backend are those of serve", async () => {
    await create("knobs");
    const target =
      "vdev=xvda,no-discard,target=--filter log --filter delay memory 1M logfile=x.log";
    await machine.okay("attach", "knobs", target, "--link", "worker", "--frontend", "max_queues=2");
    const info: ServerInfo = JSON.parse(await machine.okay("info", "--json"));
    const { attachment } = info.disks.find(({ domain }) => domain === "knobs")!;
    assert.equal(attachment.link, "worker");
    assert.equal(attachment.negotiated.queues, 2);
    assert.equal(attachment.negotiated.discard, false);
    // The file was named by us, in our folder.
    assert.ok(existsSync(machine.folder.file("x.log")));
  });

  test("what cannot be is one line that helps, and its exit code says whose fault it is", async () => {
    await create("shop", "empty");
    await attach("shop", "vdev=xvda,target=memory 1M");
    const before = await disksOf("shop");
    const cases: readonly (readonly [string[], RegExp, number])[] = [
      [["attach", "shpo", "x,,xvda"], /there is no domain "shpo"; did you mean "shop"\?/, 1],
      [["attach", "0", "vdev=xvda,target=memory 1M"], /Domain-0 has the backends/, 1],
      [["attach", "shop", "vdev=xvda,target=memory 1M"], /shop has xvda already/, 1],
      [["attach", "a.img,raw,xvdq", "shop"], /a\.img,raw,xvdq is a disk: the DOMAIN .* first/, 2],
      [["attach", "shop", "missing.img,,xvdb"], /missing\.img/, 1],
      [["attach", "shop", "disk.qcow2,qcow2,xvdb"], /qcow2.*, then write target=nbd\+unix:/, 2],
      [["attach", "shop", "vdev=xvdb,script=x,target=y"], /^vbdkit: script=x: /, 2],
      [["attach", "shop", "vdev=xvdb,backend=storage,target=y"], /^vbdkit: backend=storage: /, 2],
      [["attach", "shop", "vdev=xvdb,backendtype=qdisk,target=y"], /backendtype=qdisk: /, 2],
      [["attach", "shop", "vdev=floppy,target=memory 1M"], /no such virtual device/, 2],
      [["attach", "shop", "vdev=hdc,cdrom"], /empty cdrom/, 2],
      [["attach", "shop", "vdev=xvdb,target=--fitler log memory"], /only --filter/, 2],
      [["attach", "shop", "vdev=xvdb,target=memory 1M siez=2"], /siez/, 2],
      [["detach", "shop", "xvdd"], /shop has no disk "xvdd"; did you mean "xvda"\?/, 1],
      [["detach", "empty", "xvda"], /empty has no disks/, 1],
      [["resize", "shop", "xvda", "1G2"], /1G2: not a size/, 2],
      [["resize", "shop", "xvda", "1000"], /multiple of 512/, 2],
      [["resize", "shop", "xvda", "0"], /0 bytes are no size: write a multiple of 512 above 0/, 2],
      [["resize", "shop", "xvda", "-1M"], /^vbdkit: -1M is below 0; write the number/, 2],
      [["resize", "shop", "xvda", "512K"], /--shrink/, 2],
      [["list", "nobody"], /there is no domain "nobody"; there is first, /, 1],
    ];
    for (const [words, message, wanted] of cases) {
      const { code, stderr, stdout } = await machine.run(...words);
      assert.match(stderr, /^vbdkit: [^\n]*\n$/, words.join(" "));
      assert.match(stderr, message);
      assert.deepEqual([code, stdout], [wanted, ""], words.join(" "));
    }
    assert.deepEqual(await disksOf("shop"), before);
    assert.deepEqual(await disksOf("empty"), []);
  });

  test("what it prints to try works as pasted", async () => {
    await using folder = await temporaryFolder();
    const child = start(["machine", "web"], { cwd: folder.path });
    let text = "";
    for await (const chunk of child.stdout!) {
      text += String(chunk);
      if (text.includes("Ctrl-C")) break;
    }
    const commands = [...text.matchAll(/^ {2}(.*?) +# /gm)].map((match) => match[1]!);
    assert.equal(commands.length, 4);
    for (const command of commands) {
      const options = { cwd: folder.path, encoding: "utf8", env: cleanEnvironment() } as const;
      const { status, stdout, stderr } = spawnSync("sh", ["-c", command], options);
      assert.equal(status, 0, `${command}: ${stdout}${stderr}`);
    }
    child.kill("SIGTERM");
    assert.equal((await finished(child)).code, 0);
  });

  test("names that are none, or given twice, begin nothing", async () => {
    for (const name of ["7", "a/b", "", "Domain-0", "x".repeat(64)]) {
      const { stderr, code } = await machine.run("machine", name);
      assert.match(stderr, /^vbdkit: [^\n]*\n$/);
      assert.equal(code, 2);
    }
    assert.match((await machine.run("machine", "a", "a")).stderr, /two domains "a"/);
  });

  test("rubbish on its control socket is answered with a line, and changes nothing", async () => {
    await create("quiet");
    const say = async (text: string) => {
      const socket = connect(join(machine.served.info.directory, "control.sock"));
      socket.write(text);
      let answer = "";
      for await (const chunk of socket.setEncoding("utf8")) answer += chunk;
      return JSON.parse(answer) as { error?: string };
    };
    const full = { request: "attach", domain: "quiet", vdev: "xvda", text: "x", kind: "vbd" };
    for (const request of [
      "hello",
      "[]",
      "7",
      { request: "constructor" },
      { request: "attach" },
      { ...full, link: "moon" },
      { ...full, link: "thread", engine: "auto", spec: { driver: "memory", parameters: [7] } },
      { request: "detach", domain: 1, vdev: "xvda" },
      { request: "resize", domain: "quiet", vdev: "xvda", size: "1" },
    ]) {
      const line = typeof request === "string" ? request : JSON.stringify(request);
      assert.equal(typeof (await say(`${line}\n`)).error, "string", line);
    }
    assert.match((await say("null\n")).error!, /^requests are /);
    assert.equal(typeof (await say("x".repeat(2 ** 19))).error, "string");
    assert.deepEqual(await disksOf("quiet"), []);
  });
});
