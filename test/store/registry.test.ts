/** Names, words and specs of disks. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { StoreDriver } from "../../src/store/block-store.ts";
import { parseParameters } from "../../src/store/parameters.ts";
import { formatOf } from "../../src/store/probe.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import {
  drivers,
  filters,
  openStore,
  parseDisk,
  registerDriver,
} from "../../src/store/registry.ts";
import { parseDuration } from "../../src/util/duration.ts";
import { nearest } from "../../src/util/nearest.ts";

test("the first word is a driver, and a bare word its first parameter", () => {
  const memory = { driver: "memory", parameters: { size: "1G" }, filters: [] };
  assert.deepEqual(parseDisk(["memory", "1G"]), memory);
  assert.deepEqual(parseDisk(["memory", "size=1G"]), memory);
  assert.deepEqual(parseDisk(["file", "a.qcow2"]), {
    driver: "file",
    parameters: { file: "a.qcow2" },
    filters: [],
  });
});

test("without a driver the name decides", () => {
  assert.deepEqual(parseDisk(["disk.img"]), {
    driver: "file",
    parameters: { file: "disk.img" },
    filters: [],
    guessed: true,
  });
  for (const uri of ["nbd://host/a=b", "nbds://host", "NBD://host", "nbd+unix:///x?socket=/s"]) {
    assert.deepEqual(parseDisk([uri]), { driver: "nbd", parameters: { uri }, filters: [] });
  }
  assert.equal(parseDisk(["./memory"]).parameters.file, "./memory");
  assert.throws(() => parseDisk(["http://host/x"]), /no driver opens http:/);
  for (const name of ["a.qcow2", "b.VHD", "/x/c.vhdx", "d.vmdk"]) {
    assert.throws(() => parseDisk([name]), { code: "EINVAL", message: /format/ });
  }
});

test("parameters go to the filter that declares them, or to the driver", () => {
  assert.deepEqual(parseDisk(["memory", "1G", "rdelay=1ms", "error=EIO"], ["error", "delay"]), {
    driver: "memory",
    parameters: { size: "1G" },
    filters: [
      { name: "error", parameters: { error: "EIO" } },
      { name: "delay", parameters: { rdelay: "1ms" } },
    ],
  });
  const twice = () => parseDisk(["memory", "1G", "rdelay=1ms"], ["delay", "delay"]);
  assert.throws(twice, /rdelay= is ambiguous: filter delay and filter delay/);
});

test("what nobody can mean is refused with a hint", () => {
  assert.throws(() => parseDisk([]), /needs a name/);
  assert.throws(() => parseDisk(["memroy", "1G"]), /no driver "memroy"; did you mean "memory"/);
  assert.throws(() => parseDisk(["a.img", "b.img"]), {
    message: 'a disk has one name, and "a.img" is no driver: what is "b.img"?',
  });
  assert.throws(() => parseDisk(["memory"], ["dely"]), /no filter "dely"; did you mean "delay"/);
  assert.throws(() => parseDisk(["memory", "1G", "2G"]), /what is "2G"/);
  assert.throws(() => parseDisk(["memory", "1G", "size=2G"]), /given twice/);
  assert.throws(() => parseDisk(["size=1G"]), /neither a driver nor a name/);
});

test("parameters are parsed by their table, and errors name them", async () => {
  await assert.rejects(openStore("memory"), /memory needs size=SIZE/);
  await assert.rejects(openStore("memory 12Q"), /memory: size=12Q: not a size/);
  await assert.rejects(openStore("memory 1G sise=2G"), /no parameter "sise".*did you mean "size"/);
  await assert.rejects(openStore("memory 1G constructor=2G"), { code: "EINVAL" });
  const table = {
    a: { help: "A.", value: "A", default: 1, parse: Number },
    b: { help: "B.", value: "B", optional: true, parse: Number },
  };
  assert.deepEqual(parseParameters("x", table, { b: "3" }), { a: 1, b: 3 });
});

test("a disk is whole sectors, at least one", async () => {
  for (const driver of ["memory", "null", "pattern"]) {
    const refusal = (text: string) => openStore(`${driver} ${text}`);
    await assert.rejects(refusal("1000"), {
      code: "EINVAL",
      message: `${driver}: size=1000: no whole number of 512-byte sectors; write 512 or 1024`,
    });
    await assert.rejects(refusal("0"), /size=0: a disk of 0 bytes is none; write 512 or more/);
    await assert.rejects(refusal("100"), /sectors; write 512$/);
    await using store = await openStore(`${driver} 512`);
    assert.equal(store.info.size, 512);
    for (const size of [0, 1000]) {
      await assert.rejects(store.resize(size), { code: /EINVAL|EOPNOTSUPP/ });
    }
  }
});

test("drivers and filters are summed up alike", () => {
  for (const { name, summary } of [...drivers.values(), ...filters.values()]) {
    assert.match(summary, /^[a-z].*[^.]$/, name);
  }
});

test("an image of a format is sent to a server that reads it", () => {
  const hint = (name: string) => {
    try {
      parseDisk([name]);
      return "";
    } catch (error) {
      return (error as Error).message;
    }
  };
  assert.equal(
    hint("my disk.qcow2"),
    "my disk.qcow2 is an image in qcow2 format, which needs another server: run " +
      "qemu-nbd -t -f qcow2 -k /tmp/disk.sock 'my disk.qcow2', then " +
      "vbdkit serve 'nbd+unix:///?socket=/tmp/disk.sock'; " +
      "if it is a raw disk all the same, write: file 'my disk.qcow2'",
  );
  assert.match(hint("a.vhd"), /qemu-nbd -t -f vpc /);
});

test("every parameter of every filter parses its examples", () => {
  assert.equal(parseDuration("10ms"), 10);
  assert.equal(parseDuration("0.5"), 500);
  assert.equal(parseDuration("500us"), 0.5);
  assert.throws(() => parseDuration("soon"));
  assert.throws(() => parseDuration("9999999"));
  const rate = filters.get("error")!.parameters["error-rate"]!;
  assert.equal(rate.parse("1%"), 0.01);
  assert.equal(rate.parse("0.25"), 0.25);
  assert.throws(() => rate.parse("101%"));
  assert.throws(() => filters.get("error")!.parameters.error!.parse("EWHAT"));
  assert.throws(() => filters.get("cow")!.parameters["cow-block-size"]!.parse("5000"));
});

test("an image with the header of a format is refused where its driver was guessed", async () => {
  const directory = await mkdtemp(join(tmpdir(), "vbdkit-registry-"));
  try {
    const path = join(directory, "disk.img");
    await writeFile(path, Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(65532)]));
    await assert.rejects(openStore(path), { code: "EINVAL", message: /qcow2 format/ });
    const store = await openStore(`file ${path}`);
    assert.equal(store.info.size, 65536);
    await store[Symbol.asyncDispose]();
    await writeFile(path, Buffer.alloc(65536));
    await using _raw = await openStore(path);
    await assert.rejects(openStore(join(directory, "absent")), { code: "ENOENT" });
  } finally {
    await rm(directory, { recursive: true });
  }
});

test("the headers of formats are known, and LUKS is raw", () => {
  assert.equal(formatOf(Buffer.from("conectix")), "vhd");
  assert.equal(formatOf(Buffer.from("vhdxfile")), "vhdx");
  assert.equal(formatOf(Buffer.from("KDMV")), "vmdk");
  assert.equal(formatOf(Buffer.from("# Disk DescriptorFile\nversion=1")), "vmdk");
  const vdi = Buffer.alloc(512);
  vdi.writeUInt32LE(0xbeda107f, 0x40);
  assert.equal(formatOf(vdi), "vdi");
  assert.equal(formatOf(Buffer.from("LUKS\xba\xbe", "latin1")), undefined);
  assert.equal(formatOf(new Uint8Array(0)), undefined);
});

test("a driver of one's own takes its place beside the others", async () => {
  const answer: StoreDriver<{ byte: number }> = {
    name: "answer",
    summary: "one byte over and over",
    parameters: { byte: { help: "The byte.", value: "BYTE", default: 42, parse: Number } },
    async open({ byte }, { reactor }) {
      return promiseStore({
        reactor,
        size: 65536,
        read: (_offset, length) => new Uint8Array(length).fill(byte),
      });
    },
  };
  registerDriver(answer);
  assert.throws(() => registerDriver(answer), { code: "EEXIST" });
  assert.throws(() => registerDriver({ ...answer, name: "a=b" }), { code: "EINVAL" });
  assert.ok(drivers.has("answer"));
  await using store = await openStore("answer byte=7");
  assert.equal(store.info.readOnly, true);
});

test("opening can be aborted, and needs names that exist", async () => {
  const signal = AbortSignal.abort(new Error("no"));
  await assert.rejects(openStore("memory 1M", { signal }), { message: "no" });
  const spec = { driver: "memory", parameters: { size: "1M" } };
  await assert.rejects(
    openStore({ ...spec, filters: [{ name: "x", parameters: {} }] }),
    /no filter/,
  );
  await assert.rejects(openStore({ driver: "x", parameters: {}, filters: [] }), /no driver/);
});

test("the nearest word is found, where there is one near", () => {
  assert.equal(nearest("patern", ["memory", "pattern"]), "pattern");
  assert.equal(nearest("ndb", ["nbd", "null"]), "nbd");
  assert.equal(nearest("xyzzy", ["nbd", "null"]), undefined);
  assert.equal(nearest("x".repeat(10_000), ["nbd"]), undefined);
});
