import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { MemoryRegion } from "../../../src/io/memory.ts";
import { XenStoreInterface } from "../../../src/wire/xenstore-ring.ts";
import { GrantStatus, PAGE_SIZE, XenError } from "../../../src/xen/domain.ts";
import { DomainMemory } from "../../../src/xen/embedded/domain-memory.ts";
import * as layout from "../../../src/xen/embedded/layout.ts";

const { Header, Events } = layout;

/** Asks the C compiler what expressions of Xen's headers are worth. */
function valuesInC(includes: string, expressions: string[]): number[] {
  const directory = mkdtempSync(join(tmpdir(), "vbdkit-layout-"));
  try {
    const body = expressions.map((each) => `printf("%ld\\n", (long)(${each}));`).join("\n");
    const source = `#include <stdio.h>\n#include <stdint.h>\n#include <stddef.h>\n${includes}
      int main(void) { ${body} return 0; }`;
    const program = join(directory, "values");
    execFileSync("gcc", ["-x", "c", "-o", program, "-"], { input: source });
    return execFileSync(program, { encoding: "utf8" }).trim().split("\n").map(Number);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("grant entries, flags and statuses are those of Xen's headers", () => {
  const names: Record<string, string> = {
    okay: "okay",
    generalError: "general_error",
    badDomain: "bad_domain",
    badGrantReference: "bad_gntref",
    badHandle: "bad_handle",
    badVirtualAddress: "bad_virt_addr",
    badDeviceAddress: "bad_dev_addr",
    noDeviceSpace: "no_device_space",
    permissionDenied: "permission_denied",
    badPage: "bad_page",
    badCopyArgument: "bad_copy_arg",
    addressTooBig: "address_too_big",
    tryAgain: "eagain",
    noSpace: "no_space",
  };
  const expected: [string, number][] = [
    ["sizeof(struct grant_entry_v1)", layout.GRANT_ENTRY_BYTES],
    ["offsetof(struct grant_entry_v1, flags)", 0],
    ["offsetof(struct grant_entry_v1, domid)", 2],
    ["offsetof(struct grant_entry_v1, frame)", 4],
    ["GNTTAB_NR_RESERVED_ENTRIES", layout.RESERVED_GRANT_ENTRIES],
    ["GTF_permit_access", layout.GTF_permit_access],
    ["GTF_type_mask", layout.GTF_type_mask],
    ["GTF_readonly", layout.GTF_readonly],
    ["GTF_reading", layout.GTF_reading],
    ["GTF_writing", layout.GTF_writing],
    ["EVTCHNSTAT_closed", layout.PortState.closed],
    ["EVTCHNSTAT_unbound", layout.PortState.unbound],
    ["EVTCHNSTAT_interdomain", layout.PortState.interdomain],
    ["DOMID_FIRST_RESERVED - 1", 0x7fef],
    ["sizeof(((struct shared_info *)0)->evtchn_pending) * 8", layout.PORT_COUNT],
    ...Object.entries(GrantStatus).map(([name, value]): [string, number] => [
      `GNTST_${names[name]}`,
      value,
    ]),
  ];
  const includes = ["xen", "grant_table", "event_channel"]
    .map((header) => `#include <xen/${header}.h>`)
    .join("\n");
  const values = valuesInC(
    `#define __XEN_INTERFACE_VERSION__ 0x0003020a\n${includes}`,
    expected.map(([expression]) => expression),
  );
  for (const [i, [expression, value]] of expected.entries()) {
    assert.equal(values[i], value, expression);
  }
});

/** Rows of the table of docs/process-link.md whose header has that cell, without their backquotes. */
function tableOf(cell: string): string[][] {
  const text = readFileSync(new URL("../../../docs/process-link.md", import.meta.url), "utf8");
  const lines = text.split("\n");
  const start = lines.findIndex((line) => line.startsWith("|") && line.includes(`| ${cell} |`));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith("|"));
  assert.ok(start >= 0, `there is no table with ${cell}`);
  return lines.slice(start + 2, end).map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((each) => each.trim().replaceAll("`", "")),
  );
}

test("the documented tables are the layout", () => {
  const header = tableOf("Header word").map(([byte, size, name]) => [name, Number(byte), size]);
  assert.deepEqual(
    header,
    Object.entries(Header).map(([name, word]) => [name, word * 4, "4"]),
  );
  const events = tableOf("Event field").map(([byte, , name = ""]) => [name, Number(byte)] as const);
  assert.deepEqual(Object.fromEntries(events), Events);
  const sizes = tableOf("Event field").map(([, size]) => Number(size));
  assert.deepEqual(sizes, [4, layout.PORT_COUNT / 8, layout.PORT_COUNT / 8, layout.PORT_COUNT * 4]);
  const ring = tableOf("Ring field").map(([byte, , name = ""]) => [name, Number(byte)] as const);
  assert.deepEqual(Object.fromEntries(ring), XenStoreInterface);
  for (const [name, number] of tableOf("Number")) {
    assert.equal(GrantStatus[name as keyof typeof GrantStatus], Number(number), String(name));
  }
  const word = layout.portWord(2, 0xabcd, 0x123);
  assert.equal(word, 0xabcd2123);
  assert.deepEqual(
    [layout.portState(word), layout.portDomain(word), layout.portRemote(word)],
    [2, 0xabcd, 0x123],
  );
  const magic = Buffer.from("vbdk").readUInt32LE();
  assert.equal(layout.MAGIC, magic);
});

const memoryOf = (pages: number): MemoryRegion =>
  new MemoryRegion(new Uint8Array(new SharedArrayBuffer(pages * PAGE_SIZE)), 0);

test("memory that was formatted can be opened, by its number, while it is alive", () => {
  const region = memoryOf(32);
  const made = DomainMemory.format(region, layout.shapeOf(3, 32, { grantEntries: 512 }));
  assert.deepEqual(DomainMemory.open(region, 3).shape, made.shape);
  assert.throws(() => DomainMemory.open(region, 4), { code: "EINVAL" });
  made.markDead();
  assert.throws(() => DomainMemory.open(region, 3), { code: "ENOENT" });
});

test("a header that is wrong in any word is refused", () => {
  const hostile = [0, 1, 2, 7, 0x7ff0, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff];
  for (const word of Object.values(Header)) {
    for (const value of hostile) {
      const region = memoryOf(32);
      const { header, shape } = DomainMemory.format(
        region,
        layout.shapeOf(3, 32, { grantEntries: 512 }),
      );
      header[word] = value;
      try {
        const opened = DomainMemory.open(region, 3).shape;
        // What is accepted lies within the memory, in order.
        const { grantFrame, grantEntries, eventFrame, firstFrame, pageCount } = opened;
        assert.ok(grantFrame >= 1 && eventFrame * 4096 >= grantFrame * 4096 + grantEntries * 8);
        assert.ok(firstFrame >= eventFrame + 5 && firstFrame < pageCount && pageCount <= 32);
        assert.equal(opened.domid, shape.domid);
      } catch (error) {
        assert.ok(error instanceof XenError, String(error));
      }
    }
  }
  assert.throws(() => DomainMemory.open(memoryOf(1), 3), { code: "EINVAL" });
  const tiny = new MemoryRegion(new Uint8Array(new SharedArrayBuffer(64)), 0);
  assert.throws(() => DomainMemory.open(tiny, 3), { code: "EINVAL" });
});

test("a domain that its tables would fill is refused", () => {
  for (const [domid, pages, entries] of [
    [0x7ff0, 64, 64],
    [-1, 64, 64],
    [1.5, 64, 64],
    [1, 7, 64],
    [1, 64, 8],
    [1, 64, 65537],
    [1, 64, 4096 * 16],
    [1, 2 ** 22 + 1, 64],
  ] as const) {
    assert.throws(() => layout.shapeOf(domid, pages, { grantEntries: entries }), RangeError);
  }
  assert.equal(layout.shapeOf(1, 8, { grantEntries: 64 }).firstFrame, 7);
});
