/** xl's DISKSPEC: the examples of its manual page, what is refused and how, and xl's own parser as the judge. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { formatXlDisk, parseXlDisk, type XlDisk } from "../../src/cli/xl-disk.ts";
import { CProgram } from "../wire/c-program.ts";

const plain: XlDisk = {
  target: "/dev/vg/guest-volume",
  format: "raw",
  vdev: "hda",
  readOnly: false,
  cdrom: false,
  backend: undefined,
  backendType: undefined,
  script: undefined,
  directIoSafe: false,
  discard: undefined,
  trusted: undefined,
};
const cdrom: XlDisk = {
  ...plain,
  target: "/root/image.iso",
  vdev: "hdc",
  readOnly: true,
  cdrom: true,
};

/** xl-disk-configuration(5), "Syntax" and "Deprecated parameters, prefixes and syntaxes"; then each key. */
const examples: readonly (readonly [string, XlDisk])[] = [
  ["/dev/vg/guest-volume,,hda", { ...plain, format: undefined }],
  ["/dev/vg/guest-volume,raw,hda,rw", plain],
  ["format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume", plain],
  ["raw:/dev/vg/guest-volume,hda,w", plain],
  ["/root/image.iso,,hdc,cdrom", { ...cdrom, format: undefined }],
  ["/root/image.iso,,hdc,,cdrom", { ...cdrom, format: undefined }],
  ["/root/image.iso,raw,hdc,devtype=cdrom", cdrom],
  ["format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso", cdrom],
  ["raw:/root/image.iso,hdc:cdrom,ro", cdrom],
  [",hdc:cdrom,r", { ...cdrom, format: undefined, target: undefined }],
  ["vdev=hdc,cdrom", { ...cdrom, format: undefined, target: undefined }],
  ["tap:aio:qcow:/dev/vg/guest-volume,hda,w", { ...plain, format: "qcow" }],
  ["tap2:tapdisk:ioemu:file:phy:/dev/vg/guest-volume,hda,w", { ...plain, format: undefined }],
  ["drbd:/dev/vg/guest-volume,hda,w", { ...plain, format: undefined, script: "block-drbd" }],
  ["vdev=hda,target=a,b:c=d,", { ...plain, format: undefined, target: "a,b:c=d" }],
  ["vdev=hda,target= memory 1G ", { ...plain, format: undefined, target: " memory 1G " }],
  ["x,qcow2,xvda,r", { ...plain, target: "x", format: "qcow2", vdev: "xvda", readOnly: true }],
  ["x,vhd,xvda", { ...plain, target: "x", format: "vhd", vdev: "xvda" }],
  ["x,qed,xvda", { ...plain, target: "x", format: "qed", vdev: "xvda" }],
  [
    "direct-io-safe,no-discard,untrusted,vdev=hda,format=raw,target=/dev/vg/guest-volume",
    {
      ...plain,
      directIoSafe: true,
      discard: false,
      trusted: false,
    },
  ],
  [
    "discard,trusted,/dev/vg/guest-volume,raw,hda,backend=storage,backendtype=tap,script=x",
    {
      ...plain,
      discard: true,
      trusted: true,
      backend: "storage",
      backendType: "tap",
      script: "x",
    },
  ],
];

/** The text, and what the one line about it must name. */
const mistakes: readonly (readonly [string, RegExp])[] = [
  ["", /vdev/],
  ["disk.img", /needs a vdev: write vdev=xvda, or DISK,,xvda$/],
  ["target=memory 1M,vdev=xvda", /needs a vdev.*target= takes the rest of the text: write it last/],
  ["vdev=xvda", /needs a target/],
  ["disk.img,qcow3,xvda", /format=qcow3: write raw, .*did you mean "qcow/],
  ["disk.img,,xvda,x", /access=x: write r, ro, w, rw/],
  ["disk.img,,xvda,w,more", /"more" is one too many/],
  ["vdev=xvda,vdev=xvdb,target=x", /vdev= is given twice: xvda and xvdb/],
  ["x,,xvda,w,access=r", /access= is given twice/],
  ["x,,xvda,target=y", /target= is given twice/],
  ["vdve=xvda,target=x", /vdve= is no parameter of a disk; did you mean "vdev"/],
  ["size=1G,memory,,xvda", /size= is no parameter .*target=, last/],
  ["colo,x,,xvda", /^colo is of COLO/],
  ["colo-host=h,x,,xvda", /^colo-host is of COLO/],
  ["grant_usage=1,x,,xvda", /^grant_usage is of virtio/],
  ["specification=virtio,x,,xvda", /^specification=virtio/],
  ["devtype=floppy,x,,xvda", /^devtype=floppy: write cdrom, disk/],
  ["backendtype=blktap3,x,,xvda", /^backendtype=blktap3: write phy, qdisk, tap, standalone/],
  ["nbd://host/export,raw,xvda", /target=nbd:\/\/host\/export$/],
  ["nbd+unix:///?socket=/x,raw,xvda", /"=" in its name is written target=DISK/],
  ["x,,xvda,format=qcow2", /format= is given twice: raw and qcow2/],
  ["vmdk:/x,xvda,w", /"vmdk:" is no prefix/],
  ["constructor=x,,xvda", /constructor= is no parameter/],
  ["x\ny,,xvda", /one line/],
];

describe("xl's disk syntax", () => {
  for (const [text, disk] of examples) {
    test(`is read as the manual page has it: ${text}`, () => {
      assert.deepEqual(parseXlDisk([text]), disk);
    });
  }

  for (const [text, message] of mistakes) {
    test(`refuses in one line that names the parameter: ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseXlDisk([text]), { name: "UsageError", message });
      assert.throws(
        () => parseXlDisk([text]),
        (error: Error) => !error.message.includes("\n"),
      );
    });
  }

  test("components of a command line are read one after the other, each to its end", () => {
    const whole = parseXlDisk(["x,raw,xvda,r"]);
    assert.deepEqual(parseXlDisk(["x", "raw", "xvda", "r"]), whole);
    assert.deepEqual(parseXlDisk(["target=x", "vdev=xvda,access=r", "format=raw"]), whole);
  });

  test("an empty value is a default, which may still be given", () => {
    assert.deepEqual(parseXlDisk(["x,,xvda,,access=r"]), parseXlDisk(["x,,xvda,r"]));
    assert.deepEqual(parseXlDisk([",,xvda,target=x"]), parseXlDisk(["x,,xvda"]));
  });
});

const word = fc.stringMatching(/^[a-zA-Z0-9/._ -]{0,8}[a-zA-Z0-9/._]$/);
const disks: fc.Arbitrary<XlDisk> = fc
  .record({
    target: fc.stringMatching(/^[ -~]{0,20}[!-~]$/),
    format: fc.constantFrom(undefined, "raw", "qcow", "qcow2", "vhd", "qed"),
    vdev: fc.constantFrom("xvda", "hdc", "sdb1", "51712", "d1p2"),
    readOnly: fc.boolean(),
    cdrom: fc.boolean(),
    backend: fc.option(word, { nil: undefined }),
    backendType: fc.constantFrom(undefined, "phy", "qdisk", "tap"),
    script: fc.option(word, { nil: undefined }),
    directIoSafe: fc.boolean(),
    discard: fc.constantFrom(undefined, true, false),
    trusted: fc.constantFrom(undefined, true, false),
  } as const)
  .map((disk) => ({ ...disk, readOnly: disk.readOnly || disk.cdrom }));

/** Pieces that meet in ways nobody thought of. */
const pieces = fc.constantFrom(
  ...["", " ", ",", ":", "=", "target=", "x", "raw", "raw:", "qcow2", "vhd:", "xvda", "hdc:cdrom"],
  ...["r", "rw", "cdrom", "devtype=", "disk", "format=", "vdev=", "access=", "backend=", "script="],
  ...[
    "backendtype=",
    "tap",
    "tap:",
    "aio:",
    "nbd:",
    "foo:",
    "discard",
    "no-discard",
    "/dev/x",
    ",,",
  ],
  ...["direct-io-safe", "backendtype=phy", "colo", "no-colo", "specification=", "xen", "é", "\t"],
);
/** Nearly a disk: each of its words is at most one slip away. */
const nearly = fc
  .tuple(
    fc.constantFrom("", "raw:", "aio:", "tap:qcow2:", " "),
    fc.constantFrom("/dev/x", "x", "", "target=x", "target="),
    fc.constantFrom("", "raw", "vhd", "format=qed", "format=", ","),
    fc.constantFrom("xvda", "hdc:cdrom", "vdev=sda", "", "hdc:disk"),
    fc.constantFrom("r", "rw", "", "access=ro", "access=w", "cdrom", "devtype=disk"),
    fc.constantFrom("discard", "backend=d", "backendtype=tap", "script=s", "no-discard", "x"),
  )
  .chain(([prefix, ...words]) =>
    fc.oneof(
      fc.constant(prefix + words.join(",")),
      fc.shuffledSubarray(words, { minLength: 2 }).map((some) => prefix + some.join(", ")),
    ),
  );
const muddle = fc
  .array(fc.tuple(pieces, fc.constantFrom(",", ",", ",", "", " ")), { maxLength: 8 })
  .map((parts) => parts.flat().join(""));
const texts = fc.oneof(muddle, nearly);

describe("xl's disk syntax, judged by xl's own parser", () => {
  let judge: CProgram;
  before(() => {
    judge = new CProgram(join(import.meta.dirname, "xl-disk.c"), "x86_64-abi", [
      "xlutil",
      "xenlight",
    ]);
  });
  after(() => judge[Symbol.dispose]());

  const judged = (specs: readonly (readonly string[])[]): string[] =>
    judge.run([], specs.map((components) => `${components.join("\x1f")}\n`).join(""));

  /** A disk as the judge prints it. */
  const printed = (disk: XlDisk): string => {
    const drive = disk.target === undefined;
    return [
      ...[disk.target ?? "", drive ? "empty" : (disk.format ?? "raw"), disk.vdev],
      ...[disk.readOnly ? "0" : "1", disk.cdrom ? "1" : "0", disk.backend ?? ""],
      ...[disk.backendType ?? "unknown", disk.script ?? "", disk.directIoSafe ? "1" : "0"],
      disk.discard === undefined ? "" : disk.discard ? "1" : "0",
    ].join("\x1f");
  };

  test("a disk that is printed is read again as the same, by us and by xl", (context) => {
    const seed = Date.now();
    context.diagnostic(`seed ${seed}`);
    const all = fc.sample(disks, { numRuns: 2000, seed });
    for (const disk of all) assert.deepEqual(parseXlDisk([formatXlDisk(disk)]), disk);
    // xl 4.17 does not know whether a backend is trusted.
    const known = all.map((disk) => ({ ...disk, trusted: undefined }));
    const lines = judged(known.map((disk) => [formatXlDisk(disk)]));
    for (const [index, disk] of known.entries()) assert.equal(lines[index], printed(disk));
  });

  test("what we read, xl reads to the same disk; what xl refuses, we refuse", (context) => {
    const seed = Date.now();
    context.diagnostic(`seed ${seed}`);
    const specs = fc.sample(fc.array(texts, { minLength: 1, maxLength: 3 }), {
      numRuns: 20_000,
      seed,
    });
    const lines = judged(specs);
    let read = 0;
    for (const [index, components] of specs.entries()) {
      let disk: XlDisk;
      try {
        disk = parseXlDisk(components);
      } catch {
        continue;
      }
      read++;
      assert.equal(printed(disk), lines[index], JSON.stringify(components));
    }
    context.diagnostic(`${read} were disks`);
    assert.ok(read > 500, `only ${read} were disks`);
  });

  test("the examples of its manual page are those of its parser", () => {
    const known = examples.filter(([text]) => !text.includes("trusted"));
    assert.deepEqual(
      judged(known.map(([text]) => [text])),
      known.map(([, disk]) => printed(disk)),
    );
  });
});
