/** What a disk in xl's syntax is for vbdkit: filters and drivers in target=, and what is refused, by the parameter's name. */
import assert from "node:assert/strict";
import { resolve } from "node:path";
import { describe, test } from "node:test";
import { readAttachRequest } from "../../src/cli/attach-request.ts";
import { attachRequestOf } from "../../src/cli/attach-spec.ts";
import { exitCodeOf } from "../../src/cli/errors.ts";
import type { DiskOptions } from "../../src/cli/options.ts";
import { parseXlDisk } from "../../src/cli/xl-disk.ts";

const options: DiskOptions = { engine: "auto", link: "thread", persistent: true, discard: true };
const request = (text: string, more: Partial<DiskOptions> = {}) =>
  attachRequestOf("web", parseXlDisk([text]), { ...options, ...more });
const specOf = (target: string) => request(`vdev=xvda,target=${target}`).spec;

describe("a disk of attach", () => {
  test("is written in target= as for serve, its filters before it", () => {
    const spec = specOf("--filter delay --filter=log memory 1M rdelay=1ms logfile=/x.log");
    assert.deepEqual(spec, {
      driver: "memory",
      parameters: { size: "1M" },
      filters: [
        { name: "delay", parameters: { rdelay: "1ms" } },
        { name: "log", parameters: { logfile: "/x.log" } },
      ],
    });
  });

  test("names its files from the folder of the person who typed it", () => {
    assert.equal(specOf("disk.img").parameters.file, resolve("disk.img"));
  });

  test("names every kind of path from there", () => {
    const log = specOf("--filter log memory 1M logfile=a/../x.log");
    assert.equal(log.filters[0]!.parameters.logfile, resolve("x.log"));
    const cow = specOf("--filter cow memory 1M cow-overlay=file,file=over.img,direct=on");
    assert.equal(
      cow.filters[0]!.parameters["cow-overlay"],
      `file,file=${resolve("over.img")},direct=on`,
    );
    assert.equal(
      specOf("nbd+unix:///a?socket=x.sock").parameters.uri,
      `nbd+unix:///a?socket=${resolve("x.sock")}`,
    );
    assert.equal(specOf("nbd://host/a").parameters.uri, "nbd://host/a");
    const error = specOf("--filter error memory 1M error-file=trigger");
    assert.equal(error.filters[0]!.parameters["error-file"], resolve("trigger"));
  });

  test("is raw where xl's word says so, whatever its name ends with", () => {
    const { driver, guessed, parameters } = request("disk.qcow2,raw,xvda").spec;
    assert.deepEqual([driver, guessed], ["file", undefined]);
    assert.equal(parameters.file, resolve("disk.qcow2"));
    assert.throws(() => request("disk.qcow2,,xvda"), /qemu-nbd -t -f qcow2/);
    assert.equal(request("vdev=xvda,format=raw,target=memory 1M").spec.driver, "memory");
    assert.equal(request("vdev=xvda,format=raw,target=nbd://host/a").spec.driver, "nbd");
  });

  test("has what xl's flags say at both ends", () => {
    const said = request("x,,hdc,cdrom,no-discard,untrusted,direct-io-safe,backendtype=tap");
    assert.deepEqual(
      [said.readOnly, said.cdrom, said.kind, said.backend.discard, said.frontend.trusted],
      [true, true, "vbd3", false, false],
    );
    const plain = request("x,,xvda");
    assert.deepEqual(
      [plain.readOnly, plain.cdrom, plain.kind, plain.backend.discard],
      [false, false, "vbd", true],
    );
    assert.equal("trusted" in plain.frontend, false);
  });

  test("has the knobs and the locks of serve", () => {
    const { backend, frontend, spec, link } = request("x,,xvda", {
      ...{ link: "worker", shared: true, maxRingPageOrder: 1, persistent: false },
      ...{ backend: ["max_queues=2"], frontend: ["max_queues=3"] },
    });
    assert.equal(link, "worker");
    assert.deepEqual([backend.maxQueues, frontend.maxQueues], [2, 3]);
    assert.deepEqual([backend.maxRingPageOrder, frontend.maxRingPageOrder], [1, 1]);
    assert.deepEqual([backend.persistent, frontend.persistent], [false, false]);
    assert.equal(spec.parameters.lock, "off");
  });

  test("crosses a socket as it is", () => {
    const made = request("vdev=xvda,target=--filter log memory 1M");
    assert.deepEqual(readAttachRequest(JSON.parse(JSON.stringify(made))), made);
  });

  const mistakes: readonly (readonly [string, RegExp])[] = [
    ["disk.img,qcow2,xvda", /format=qcow2|qemu-nbd -t -f qcow2/],
    ["disk.img,vhd,xvda", /qemu-nbd -t -f vpc/],
    ["vdev=xvda,script=x,target=y", /^script=x: /],
    ["drbd:y,xvda,w", /^script=block-drbd: /],
    ["vdev=xvda,backend=storage,target=y", /^backend=storage: /],
    ["vdev=xvda,backendtype=qdisk,target=y", /^backendtype=qdisk: /],
    ["vdev=xvda,backendtype=phy,target=y", /^backendtype=phy: /],
    ["vdev=floppy,target=memory 1M", /no such virtual device/],
    ["vdev=hdc,cdrom", /empty cdrom/],
    ["vdev=xvda,target= ", /a disk needs a name/],
    ["vdev=xvda,target=--fitler log memory 1M", /only --filter NAME .* not --fitler/],
    ["vdev=xvda,target=--filter lgo memory 1M", /no filter "lgo"; did you mean "log"/],
    ["vdev=xvda,target=memry", /did you mean "memory"/],
  ];
  for (const [text, message] of mistakes) {
    test(`that cannot be is refused in one line: ${text}`, () => {
      assert.throws(
        () => request(text),
        (error: Error) => {
          assert.match(error.message, message);
          assert.ok(!error.message.includes("\n"));
          return exitCodeOf(error) === 2;
        },
      );
    });
  }
});
