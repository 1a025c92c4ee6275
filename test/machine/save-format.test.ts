/** Streams of saved guests: as documented, and damaged or hostile in every way we can think of. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { crc32 } from "node:zlib";
import { Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import {
  RecordReader,
  RecordType,
  RecordWriter,
  type SaveRecord,
} from "../../src/machine/save-format.ts";
import { SeededRandom } from "../../src/util/random.ts";
import { temporaryFolder } from "../support/vbdkit.ts";

const GUEST_PAGES = 2048;

/** A guest with a little of everything, its bytes, and where its records begin. */
async function savedGuest(): Promise<{ bytes: Buffer; starts: number[] }> {
  await using folder = await temporaryFolder();
  await using machine = await Machine.start({ reactor: new Reactor() });
  const guest = await machine.createGuest({
    name: "saved",
    memoryPages: GUEST_PAGES,
    grantEntries: 2048,
  });
  const disk = await machine.attach(parseDisk(["memory", "64k", "wdelay=100ms"], ["delay"]), {
    vdev: "xvda",
    guest,
    frontend: { maxPoolPages: 64 },
  });
  const pages = guest.allocate(2)!;
  pages.region.bytes.fill(7, pages.start, pages.start + 100);
  pages.grant(1, 0, true);
  const write = disk.write(0, Buffer.alloc(512, 3)).catch(() => {});
  await guest.save(folder.file("saved"), { checkpoint: true });
  await write;
  const bytes = await readFile(folder.file("saved"));
  const starts: number[] = [];
  for (let at = 16; at < bytes.length; at += 16 + bytes.readUInt32LE(at + 4)) starts.push(at);
  return { bytes, starts };
}

async function decode(bytes: Uint8Array): Promise<SaveRecord[]> {
  const reader = new RecordReader(
    (async function* () {
      // In pieces that no record respects.
      for (let at = 0; at < bytes.length; at += 7) yield bytes.subarray(at, at + 7);
    })(),
  );
  await reader.header();
  const records: SaveRecord[] = [];
  while (records.at(-1)?.type !== "end") records.push(await reader.next());
  return records;
}

function encode(records: readonly SaveRecord[]): Buffer {
  const writer = new RecordWriter();
  return Buffer.concat([writer.header(), ...records.map((record) => writer.record(record))]);
}

test("the table of records in the documentation is that of the code", () => {
  const text = readFileSync(new URL("../../docs/save-format.md", import.meta.url), "utf8");
  const rows = [...text.matchAll(/^\| (\d+) \| `(\w+)` \|/gm)].map(([, type, name]) => [
    name,
    Number(type),
  ]);
  assert.deepEqual(rows, Object.entries(RecordType));
});

test("a record is its type, its length, its number, its check sum, and its body", () => {
  const record = new RecordWriter().record({
    type: "request",
    disk: 1,
    operation: 1,
    ordered: true,
    flags: 2,
    offset: 2 ** 40,
    length: 2,
    data: Uint8Array.of(8, 9),
  });
  const body = "01000000" + "01" + "01" + "0200" + "0000000000010000" + "0200000000000000" + "0809";
  const head = "06000000" + "1a000000" + "00000000";
  const sum = Buffer.alloc(4);
  sum.writeUInt32LE(crc32(Buffer.from(head + body, "hex")));
  assert.equal(Buffer.from(record).toString("hex"), head + sum.toString("hex") + body);
});

test("what was written is read again, in chunks of any size", async () => {
  const { bytes, starts } = await savedGuest();
  const records = await decode(bytes);
  assert.equal(records.length, starts.length);
  assert.ok(encode(records).equals(bytes));
  const kinds = new Set(records.map(({ type }) => type));
  assert.deepEqual([...kinds], ["guest", "run", "pages", "node", "disk", "request", "end"]);
});

test("a damaged file is one clear error, wherever it is damaged, and leaves nothing", async (t) => {
  await using folder = await temporaryFolder();
  const seed = Math.floor(Math.random() * 2 ** 31);
  t.diagnostic(`seed ${seed}`);
  const random = new SeededRandom(seed);
  const { bytes, starts } = await savedGuest();
  await using machine = await Machine.start({ reactor: new Reactor() });
  const path = folder.file("damaged");
  const refused = async (damaged: Uint8Array, what: string): Promise<void> => {
    await writeFile(path, damaged);
    await assert.rejects(
      machine.restore(path),
      (error: Error & { code?: string }) => {
        assert.equal(error.code, "EINVAL", `${what}: ${error.stack}`);
        assert.match(error.message, /^this is no saved guest, or a damaged one: /);
        return true;
      },
      what,
    );
  };
  const flip = (at: number): Uint8Array => {
    const damaged = Uint8Array.from(bytes);
    damaged[at]! ^= 1 << random.below(8);
    return damaged;
  };
  for (const start of [0, ...starts]) {
    for (let at = start; at < start + 16; at++) await refused(flip(at), `byte ${at} is flipped`);
    for (const at of [start, start + 3, start + 16]) {
      if (at < bytes.length) await refused(bytes.subarray(0, at), `cut off at ${at}`);
    }
  }
  for (let tries = 0; tries < 50; tries++) {
    const at = random.below(bytes.length);
    await refused(flip(at), `byte ${at} is flipped`);
  }
  await refused(Buffer.concat([bytes, Buffer.alloc(1)]), "something after its end");
  await refused(Buffer.concat([bytes, bytes]), "it is there twice");
  // A record that is missing.
  const [, second, third] = starts;
  const without = Buffer.concat([bytes.subarray(0, second), bytes.subarray(third)]);
  await refused(without, "a record is missing");
  await refused(new Uint8Array(0), "an empty file");
  assert.equal(machine.guests.size, 0);
  await writeFile(path, bytes);
  await machine.restore(path);
});

test("a stream that is well formed and says what cannot be is refused, and leaves nothing", async () => {
  await using folder = await temporaryFolder();
  await using machine = await Machine.start({ reactor: new Reactor() });
  const { bytes } = await savedGuest();
  const good = await decode(bytes);
  const path = folder.file("hostile");
  const of = (type: SaveRecord["type"]): number => good.findIndex((each) => each.type === type);
  const changed = (type: SaveRecord["type"], changes: object): SaveRecord[] =>
    good.with(of(type), { ...good[of(type)]!, ...changes } as SaveRecord);
  const grant = { reference: 0, peer: 0, readOnly: false };
  const { disk } = good[of("disk")] as { disk: object };
  const another = (type: SaveRecord["type"]): SaveRecord[] =>
    good.toSpliced(of(type), 0, good[of(type)]!);
  const disks = (changes: object): SaveRecord[] =>
    changed("disk", { disk: { ...disk, ...changes } });
  const hostile: Record<string, SaveRecord[]> = {
    "no guest": good.slice(1),
    "two guests": another("guest"),
    "no ports": changed("guest", { portCount: 1 }),
    "more mappings than any domain may hold": changed("guest", { maptrackEntries: 2 ** 32 - 1 }),
    "no memory": changed("guest", { memoryPages: 0 }),
    "more memory than any domain may have": changed("guest", { memoryPages: 2 ** 32 - 1 }),
    "no grant entries": changed("guest", { grantEntries: 0 }),
    "a name with a newline": changed("guest", { name: "a\nb" }),
    "no name": changed("guest", { name: "" }),
    "an answer": good.with(of("node"), { type: "answer", refusal: "" }),
    "a run after a node": good.toSpliced(of("disk"), 0, good[of("run")]!),
    "more pages than memory": changed("run", {
      grants: Array.from({ length: GUEST_PAGES }, () => grant),
    }),
    "a reserved reference": changed("run", { grants: [{ ...grant, reference: 3 }, grant] }),
    "a reference beyond the table": changed("run", {
      grants: [{ ...grant, reference: 2048 }, grant],
    }),
    "a reference twice": changed("run", {
      grants: [
        { ...grant, reference: 99 },
        { ...grant, reference: 99 },
      ],
    }),
    "a grant to no domain": changed("run", {
      grants: [{ ...grant, reference: 99, peer: 0x7ff0 }, grant],
    }),
    "a page beyond its run": changed("pages", { page: 2 }),
    "a page of no run": changed("pages", { run: 1 }),
    "a node outside": changed("node", { path: "//x" }),
    "a node without a name": changed("node", { path: "" }),
    "a node with a NUL": changed("node", { path: "a\0b" }),
    "a node that the machine makes": changed("node", { path: "vm" }),
    "a node of a device": changed("node", { path: "device/vbd/51712/backend" }),
    "a node that would end the line": changed("node", { path: "name\n", permissions: [] }),
    "a node of no domain": changed("node", { permissions: [{ domid: 0xffff, access: "read" }] }),
    "a value longer than xenstore takes": changed("node", { value: new Uint8Array(5000) }),
    "a disk that is a number": changed("disk", { disk: 5 }),
    "a disk that is null": changed("disk", { disk: null }),
    "a disk without a name": disks({ vdev: 5 }),
    "a disk by a name that is none": disks({ vdev: "nonsense" }),
    "a disk whose name ends the line": disks({ vdev: "xvda\n".repeat(100) }),
    "a disk of no kind": disks({ kind: "vbd/1/51712" }),
    "a disk that is perhaps a CD": disks({ cdrom: 1 }),
    "a disk with an option that none has": disks({ signal: { aborted: true } }),
    "a disk on no link": disks({ link: "rope" }),
    "a disk with a limit that is text": disks({ frontend: { maxQueues: "2" } }),
    "a disk with an unknown limit": disks({ frontend: { toString: 5 } }),
    "a disk with a limit that ends the line": disks({ frontend: { "a\nb": 5 } }),
    "a disk with an unknown dialect": disks({ backend: { dialect: "constructor" } }),
    "a disk in no units": disks({ backend: { sectorSize: 1000 } }),
    "a disk without a spec": disks({ spec: {} }),
    "a disk by a driver that there is not": disks({
      spec: { driver: "__proto__", parameters: {}, filters: [] },
    }),
    "a driver that ends the line": disks({
      spec: { driver: "memory\n", parameters: {}, filters: [] },
    }),
    "a parameter that ends the line": disks({
      spec: { driver: "memory", parameters: { "a\nb": "5" }, filters: [] },
    }),
    "a parameter that is no text": disks({
      spec: { driver: "memory", parameters: { size: 5 }, filters: [] },
    }),
    "filters that are none": disks({ spec: { driver: "memory", parameters: {}, filters: [null] } }),
    "a disk twice": another("disk"),
    "a request for no disk": changed("request", { disk: 1 }),
    "requests of more data than is in flight anywhere": [
      ...good.slice(0, -1),
      ...Array.from({ length: 40 }, () => ({
        type: "request" as const,
        disk: 0,
        operation: 0 as const,
        ordered: false,
        flags: 0,
        offset: 0,
        length: 32 << 20,
        data: new Uint8Array(0),
      })),
      good.at(-1)!,
    ],
  };
  for (const [what, records] of Object.entries(hostile)) {
    await writeFile(path, encode(records));
    await assert.rejects(
      machine.restore(path),
      (error: Error & { code?: string }) => {
        assert.match(error.code ?? "", /^(EINVAL|EEXIST|E2BIG)$/, `${what}: ${error.stack}`);
        assert.match(error.message, /^[ -~]{1,700}$/, what);
        return true;
      },
      what,
    );
    assert.equal(machine.guests.size, 0, what);
    assert.equal(machine.disks.size, 0, what);
  }
});

test("a request that breaks a rule of the disk fails by itself when the guest is restored", async () => {
  await using folder = await temporaryFolder();
  await using machine = await Machine.start({ reactor: new Reactor() });
  const { bytes } = await savedGuest();
  const good = await decode(bytes);
  const request = good.find(({ type }) => type === "request") as SaveRecord & { type: "request" };
  const shapes: Partial<typeof request>[] = [
    { offset: 2 ** 50 },
    { offset: 1 },
    { length: 3, data: new Uint8Array(3) },
    { length: 0, data: new Uint8Array(0) },
    { operation: 3, length: 2 ** 40, data: new Uint8Array(0) },
    { operation: 5, data: new Uint8Array(0) },
    { operation: 2, flags: 0xffff, data: new Uint8Array(0) },
  ];
  const records = [
    ...good.filter(({ type }) => type !== "request" && type !== "end"),
    ...shapes.map((shape) => ({ ...request, ...shape })),
    request,
    { type: "end" as const },
  ];
  await writeFile(folder.file("saved"), encode(records));
  const guest = await machine.restore(folder.file("saved"));
  const [disk] = guest.disks;
  const outcomes = await Promise.allSettled(disk!.inherited.map(({ outcome }) => outcome));
  assert.equal(outcomes.length, shapes.length + 1);
  assert.equal(outcomes.at(-1)?.status, "fulfilled");
  assert.ok(outcomes.slice(0, 3).every(({ status }) => status === "rejected"));
  assert.deepEqual(Buffer.from(await disk!.read(0, 512)), Buffer.alloc(512, 3));
});
