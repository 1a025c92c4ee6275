/** Guests that outlive their process: saved to a file, restored in another process, moved to another machine. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Guest, Machine, openStore, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { writeWhole } from "../../src/machine/save-file.ts";
import { XenStoreClient } from "../../src/xen/xenstore/client.ts";
import { finished, temporaryFolder } from "../support/vbdkit.ts";
import { Account, BLOCK_BYTES, BLOCKS, fill, WRITERS } from "./verified-load.ts";

const page = (value: number): Buffer => Buffer.alloc(4096, value);

async function start(): Promise<Machine> {
  return await Machine.start({ reactor: new Reactor() });
}

const onlyDisk = (guest: Guest) => [...guest.disks][0]!;

function run(program: string, ...words: string[]) {
  const path = join(import.meta.dirname, program);
  const flags = process.execArgv.filter((each) => each.startsWith("--conditions"));
  return spawn(process.execPath, [...flags, path, ...words], { stdio: ["ignore", "pipe", "pipe"] });
}

/** Lets the process work, kills it when its guest is saved, or in the middle of it, and gives its account. */
async function killedSaver(
  image: string,
  saved: string,
  seed: number,
  when: "saved" | "saving",
): Promise<Account> {
  const child = run("saver-worker.ts", image, saved, String(seed));
  const outcome = finished(child);
  if (when === "saved") while (!existsSync(saved) && child.exitCode === null) await sleep(1);
  else {
    const { promise, resolve } = Promise.withResolvers<void>();
    child.stdout.on("data", (chunk) => String(chunk).includes("s\n") && resolve());
    await Promise.race([promise, outcome]);
    await sleep(seed % 16);
  }
  child.kill("SIGKILL");
  const { stdout, stderr } = await outcome;
  assert.equal(stderr, "");
  return new Account(stdout);
}

/** A backend in a process of its own has the image until it has answered what it had. */
async function restored(machine: Machine, saved: string): Promise<Guest> {
  for (;;) {
    try {
      return await machine.restore(saved);
    } catch (error) {
      if ((error as { code?: string }).code !== "EBUSY") throw error;
      await sleep(20);
    }
  }
}

test("a guest that was saved under load, and whose process was killed, is restored with every write", async (t) => {
  await using folder = await temporaryFolder();
  let inFlight = 0;
  for (const when of ["saved", "saving", "saved"] as const) {
    const seed = Math.floor(Math.random() * 2 ** 31);
    t.diagnostic(`seed ${seed}`);
    const image = folder.file(`${seed}.img`);
    const saved = folder.file(`${seed}.saved`);
    await writeFile(image, new Uint8Array(BLOCKS * BLOCK_BYTES));
    const account = await killedSaver(image, saved, seed, when);
    // Killed before all was written, there is no file, under this name at least.
    if (when === "saving" && !existsSync(saved)) continue;
    assert.ok(account.blocks > WRITERS, `only ${account.blocks} blocks were written`);
    await using machine = await start();
    // Another number than the guest had, and its name.
    const other = await machine.createGuest();
    const guest = await restored(machine, saved);
    assert.deepEqual([guest.name, guest.state], ["loaded", "running"]);
    assert.equal(guest.shape.portCount, 100);
    assert.notEqual(guest.domid, other.domid);
    const disk = onlyDisk(guest);
    inFlight += disk.inherited.length;
    for (const request of disk.inherited) await request.outcome;
    account.check(await disk.read(0, BLOCKS * BLOCK_BYTES), `seed ${seed}`);
    const [pages] = guest.pages;
    const expected = Buffer.alloc(3 * 4096);
    fill(expected, 77);
    assert.ok(expected.equals(pages!.region.bytes.subarray(pages!.start, pages!.start + 3 * 4096)));
    const { store } = guest.domain;
    const application = await store.read(`/local/domain/${guest.domid}/data/app`);
    assert.equal(application, String(pages!.references[1]));
    assert.equal(await store.read(`/local/domain/${guest.domid}/name`), "loaded");
    assert.equal(guest.grantOf(pages!.references[0]!).readOnly, true);
  }
  assert.ok(inFlight > 0, "nothing was in flight in any round");
});

test("a save that is given up leaves no file, and the guest at work", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest({ name: "kept", memoryPages: 4096 });
  const disk = await machine.attach(parseDisk(["memory", "1M"], []), { vdev: "xvda", guest });
  const { region, start: first } = guest.allocate(2000)!;
  region.bytes.fill(1, first, first + 2000 * 4096);
  const path = folder.file("given-up");
  const left = new AbortController();
  const saved = guest.save(path, { signal: left.signal });
  const gone = assert.rejects(saved, /whoever asked has gone/);
  // In the middle: its own name comes when it is whole.
  while (!readdirSync(folder.path).some((name) => name.endsWith(".tmp"))) await sleep(0);
  left.abort(new Error("whoever asked has gone"));
  await gone;
  assert.deepEqual([readdirSync(folder.path), guest.state], [[], "running"]);
  await disk.write(0, page(7));
  await assert.rejects(guest.save(path, { signal: left.signal }), /whoever asked has gone/);
  await guest.save(path, { signal: new AbortController().signal });
  assert.deepEqual([readdirSync(folder.path), guest.state], [["given-up"], "dead"]);
});

test("a checkpoint leaves the guest at work, and what it does later is not in it", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest({ name: "kept" });
  const disk = await machine.attach(parseDisk(["memory", "1M", "wdelay=20ms"], ["delay"]), {
    vdev: "xvda",
    guest,
  });
  const writes = Array.from({ length: 40 }, (_, i) => disk.write(i * 4096, page(i + 1)));
  const saved = folder.file("checkpoint");
  await guest.save(saved, { checkpoint: true });
  await Promise.all(writes);
  await disk.write(0, page(200));
  assert.equal(guest.state, "running");
  // Beside the one that goes on: under another name, and on another disk, which begins empty here.
  await assert.rejects(machine.restore(saved), { code: "EEXIST" });
  const copy = await machine.restore(saved, { name: "copy" });
  const { inherited } = onlyDisk(copy);
  assert.equal(inherited.length, 40);
  await Promise.all(inherited.map(({ outcome }) => outcome));
  for (let i = 0; i < 40; i++) assert.equal((await onlyDisk(copy).read(i * 4096, 1))[0], i + 1);
  assert.equal((await disk.read(0, 1))[0], 200);
});

test("what a saved guest had asked for is told: reads with their data, and errors", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest();
  const options = { vdev: "xvda", guest };
  const disk = await machine.attach(
    parseDisk(["pattern", "1M", "rdelay=300ms"], ["delay"]),
    options,
  );
  const reads = [disk.read(4096, 512), disk.read(0, 8192)].map((read) =>
    read.catch((error) => error),
  );
  await guest.suspend();
  const saved = folder.file("saved");
  await guest.save(saved, { checkpoint: true });
  assert.equal(guest.state, "suspend");
  await guest.crash();
  for (const read of reads) assert.equal(((await read) as { code: string }).code, "EIO");
  const plain = await machine.restore(saved, {
    name: "plain",
    disk: (was) => {
      assert.deepEqual([was.vdev, was.spec?.driver], ["xvda", "pattern"]);
      return parseDisk(["pattern", "1M"], []);
    },
  });
  const [first, second] = onlyDisk(plain).inherited;
  await first!.outcome;
  await second!.outcome;
  assert.deepEqual([first!.operation, first!.offset, first!.length], ["read", 4096, 512]);
  assert.equal(new DataView(first!.data.buffer).getBigUint64(8), 4104n);
  const small = await machine.restore(saved, {
    name: "small",
    disk: () => parseDisk(["memory", "4k"]),
  });
  const outcomes = await Promise.allSettled(
    onlyDisk(small).inherited.map(({ outcome }) => outcome),
  );
  assert.deepEqual(
    outcomes.map((outcome) => outcome.status === "rejected" && outcome.reason.code),
    ["EINVAL", "EINVAL"],
  );
});

test("a guest that cannot be saved goes on, and no file is left, nor an older one lost", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest();
  const disk = await machine.attach(parseDisk(["memory", "1M"]), { vdev: "xvda", guest });
  await assert.rejects(guest.save(folder.file("none/saved")), { code: "ENOENT" });
  const taken = folder.file("taken");
  await writeFile(join(folder.path, "guard"), "");
  await mkdir(taken);
  await assert.rejects(guest.save(taken), { code: "EISDIR" });
  assert.deepEqual(readdirSync(folder.path).sort(), ["guard", "taken"]);
  assert.equal(guest.state, "running");
  await disk.write(0, page(1));
});

test("a disk that had been given opened is asked for when its guest is restored", async () => {
  await using folder = await temporaryFolder();
  const reactor = new Reactor();
  await using machine = await Machine.start({ reactor });
  const guest = await machine.createGuest({ name: "opened" });
  const store = await openStore("memory 1M", { reactor });
  await machine.attach(store, { vdev: "xvda", guest });
  const saved = folder.file("saved");
  await guest.save(saved);
  await assert.rejects(machine.restore(saved), /xvda had been given opened/);
  assert.equal(machine.guests.size, 0);
  const again = await openStore("memory 1M", { reactor });
  const restored = await machine.restore(saved, { disk: () => again });
  await onlyDisk(restored).write(0, page(1));
});

/** Both ends of a connection. */
async function connection(): Promise<[Socket, Socket]> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const other = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const one = connect((server.address() as AddressInfo).port, "127.0.0.1");
  const both: [Socket, Socket] = [one, await other];
  server.close();
  return both;
}

test("a guest moves to another machine under load, and its disk is never open in both", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  await writeFile(image, new Uint8Array(2 ** 20));
  await using here = await start();
  await using there = await start();
  const guest = await here.createGuest({ name: "mover" });
  const spec = parseDisk([image, "wdelay=5ms"], ["delay"]);
  const disk = await here.attach(spec, { vdev: "xvda", guest, link: "worker" });
  const writes = Array.from({ length: 100 }, (_, i) => disk.write(i * 4096, page(i + 1)));
  const outcomes = Promise.allSettled(writes);
  const [one, other] = await connection();
  // The image lock lets one in: receiving would fail if the sender had it still.
  const [, arrived] = await Promise.all([guest.migrate(one), there.receive(other)]);
  one.destroy();
  other.destroy();
  assert.deepEqual([guest.state, here.disks.size, here.guests.size], ["dead", 0, 0]);
  for (const outcome of await outcomes) {
    assert.ok(outcome.status === "fulfilled" || outcome.reason.code === "ESHUTDOWN");
  }
  const moved = onlyDisk(arrived);
  await Promise.all(moved.inherited.map(({ outcome }) => outcome));
  for (let i = 0; i < 100; i++) assert.equal((await moved.read(i * 4096, 1))[0], i + 1);
});

test("a guest moves to a machine of another process over a Unix socket", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  await writeFile(image, new Uint8Array(2 ** 20));
  await using machine = await start();
  const guest = await machine.createGuest({ name: "mover", shared: true });
  const spec = parseDisk([image, "wdelay=5ms"], ["delay"]);
  const disk = await machine.attach(spec, { vdev: "xvda", guest, link: "process" });
  const writes = Array.from({ length: 100 }, (_, i) => disk.write(i * 4096, page(i + 1)));
  const outcomes = Promise.allSettled(writes);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(folder.file("sock"), resolve));
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const child = run("receiver-worker.ts", folder.file("sock"));
  const outcome = finished(child);
  const stream = await connected;
  server.close();
  await guest.migrate(stream);
  await outcomes;
  assert.equal(guest.state, "dead");
  assert.deepEqual(await outcome, { code: 0, stdout: "mover: 100 pages", stderr: "" });
  stream.destroy();
});

test("a guest that is not taken runs on where it was, with every request", async () => {
  await using folder = await temporaryFolder();
  const image = folder.file("disk.img");
  await writeFile(image, new Uint8Array(2 ** 20));
  await using here = await start();
  await using there = await start();
  const guest = await here.createGuest({ name: "mover" });
  const disk = await here.attach(parseDisk([image]), { vdev: "xvda", guest });
  for (const refuses of ["name", "disk", "gone"]) {
    const writes = Array.from({ length: 100 }, (_, i) => disk.write(i * 4096, page(i + 1)));
    const [one, other] = await connection();
    const taken = refuses === "name" ? await there.createGuest({ name: "mover" }) : undefined;
    const receiving =
      refuses === "gone"
        ? other.destroy()
        : assert.rejects(
            there.receive(other, { disk: () => parseDisk([folder.file("nowhere.img")]) }),
          );
    await assert.rejects(guest.migrate(one), (error: Error & { code: string }) => {
      if (refuses === "gone") return true;
      assert.equal(error.code, "ECONNREFUSED");
      return refuses === "name"
        ? /there is a guest/.test(error.message)
        : /nowhere/.test(error.message);
    });
    await receiving;
    one.destroy();
    other.destroy();
    await taken?.destroy();
    // Whether all had been sent when the other was gone is chance.
    if (guest.state === "suspend") await guest.resume();
    await Promise.all(writes);
    assert.equal(there.guests.size, 0);
  }
  for (let i = 0; i < 100; i++) assert.equal((await disk.read(i * 4096, 1))[0], i + 1);
});

test("where no answer comes it is said so, and the guest stays suspended for whoever knows", async () => {
  await using here = await start();
  const guest = await here.createGuest();
  const disk = await here.attach(parseDisk(["memory", "1M"]), { vdev: "xvda", guest });
  const [one, other] = await connection();
  const migrating = guest.migrate(one);
  // All of it is read, and then nothing is said.
  other.once("data", async () => {
    while (
      disk.frontend.state !== "suspended" ||
      (await disk.information()).backend.rings.length > 0
    ) {
      await sleep(1);
    }
    await sleep(20);
    other.destroy();
  });
  await assert.rejects(migrating, { code: "ECONNRESET" });
  one.destroy();
  assert.equal(guest.state, "suspend");
  await guest.resume();
  await disk.write(0, page(1));
});

test("a guest on a xenstore ring is saved while it hears nothing, and finds a new ring where it is restored", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest({ name: "ringed", xenstore: "ring", portCount: 50 });
  const options = { vdev: "xvda", guest, cdrom: true, kind: "qdisk" } as const;
  const disk = await machine.attach(parseDisk(["memory", "1M"]), options);
  const { store } = guest.domain;
  const path = (domid: number) => `/local/domain/${domid}/data/key`;
  let heard = 0;
  await store.watch(path(guest.domid), () => heard++);
  await store.write(path(guest.domid), "value");
  // What a transaction has not ended with is nowhere.
  const open = store.transaction(async (operations) => {
    await operations.write(path(guest.domid), "never");
    await new Promise(() => {});
  });
  open.catch(() => {});
  await disk.write(0, page(1));
  await guest.save(folder.file("saved"));
  const again = await machine.restore(folder.file("saved"));
  assert.deepEqual(again.shape, { ...guest.shape, ring: true, portCount: 50 });
  const before = heard;
  const { domid } = again;
  assert.equal(await again.domain.store.read(path(domid)), "value");
  await again.domain.store.write(path(domid), "another");
  assert.equal(heard, before);
  const uuid = (await again.domain.store.read(`/local/domain/${domid}/vm`))!;
  assert.equal(await again.domain.store.read(`${uuid}/name`), "ringed");
  const { options: attached, paths } = onlyDisk(again);
  assert.deepEqual([attached.cdrom, attached.kind], [true, "qdisk"]);
  assert.match(paths.backend, /qdisk/);
  await again.suspend();
  await again.crash();
  await again.destroy();
  // The machine ends with one that hears nothing.
  const third = await machine.restore(folder.file("saved"));
  await third.suspend();
});

test("a disk that is being attached when its guest is saved or ends is not attached", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  for (const xenstore of [{}, { xenstore: "ring" }] as const) {
    const guest = await machine.createGuest(xenstore);
    const attaching = machine.attach(parseDisk(["memory", "1M"]), { vdev: "xvda", guest });
    const refused = assert.rejects(attaching);
    await guest.save(folder.file("saved"));
    await refused;
    assert.equal(machine.disks.size, 0);
  }
});

test("a node that was another guest's is domain 0's where the guest is restored", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const other = await machine.createGuest({ name: "other" });
  const guest = await machine.createGuest({ name: "saved" });
  const toolstack = machine.embedded.xenstore.connect(0);
  await using store = new XenStoreClient(toolstack);
  const path = (domid: number) => `/local/domain/${domid}/theirs`;
  await store.write(path(guest.domid), "");
  const access = "read";
  await store.setPermissions(path(guest.domid), [
    { domid: other.domid, access: "none" },
    { domid: guest.domid, access },
    { domid: other.domid, access },
  ]);
  await guest.save(folder.file("saved"));
  const again = await machine.restore(folder.file("saved"));
  assert.deepEqual(await store.getPermissions(path(again.domid)), [
    { domid: 0, access: "none" },
    { domid: again.domid, access },
    { domid: other.domid, access },
  ]);
});

test("what cannot be written to its end leaves no file and the older one, whatever is left of a process that was killed", async () => {
  await using folder = await temporaryFolder();
  const path = folder.file("saved");
  await writeFile(path, "older");
  const full = Object.assign(new Error("no space left on the device"), { code: "ENOSPC" });
  const broken = writeWhole(path, async (sink) => {
    await sink(page(1));
    throw full;
  });
  await assert.rejects(broken, { code: "ENOSPC" });
  assert.deepEqual(readdirSync(folder.path), ["saved"]);
  assert.equal(await readFile(path, "utf8"), "older");
  await writeWhole(path, async (sink) => {
    await sink(page(1));
    await sink(page(2));
  });
  assert.deepEqual(await readFile(path), Buffer.concat([page(1), page(2)]));
  assert.deepEqual(readdirSync(folder.path), ["saved"]);
});

test("a pipe and a device are no saved guest, and nobody waits for them", async () => {
  await using folder = await temporaryFolder();
  await using machine = await Machine.start();
  const pipe = folder.file("pipe");
  execFileSync("mkfifo", [pipe]);
  // More than there are threads for files.
  for (const path of [...Array.from({ length: 6 }, () => pipe), "/dev/zero", folder.file(".")]) {
    await assert.rejects(machine.restore(path), { code: "EINVAL", message: /is not a file/ });
  }
  assert.equal(machine.guests.size, 0);
});

test("a saved file is its owner's alone", async () => {
  await using folder = await temporaryFolder();
  await using machine = await start();
  const guest = await machine.createGuest();
  await guest.save(folder.file("saved"));
  assert.equal((await stat(folder.file("saved"))).mode & 0o777, 0o600);
  assert.equal((await readFile(folder.file("saved"))).toString("latin1", 0, 8), "vbdksave");
});
