import assert from "node:assert/strict";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { MachineFolder } from "../../../src/xen/embedded/machine-folder.ts";

const scratch = mkdtempSync(join(tmpdir(), "vbdkit-folder-"));
after(() => rmSync(scratch, { recursive: true }));

test("a machine's folder is made for us alone, and goes with it", () => {
  const wanted = join(scratch, "new", "machine");
  const folder = new MachineFolder(wanted);
  assert.equal(folder.path, wanted);
  assert.equal(statSync(wanted).mode & 0o777, 0o700);
  folder[Symbol.dispose]();
  assert.equal(statSync(wanted, { throwIfNoEntry: false }), undefined);
});

test("a folder that is there is taken when it is ours and closed to others", () => {
  const wanted = join(scratch, "ours");
  mkdirSync(wanted, { mode: 0o700 });
  using folder = new MachineFolder(wanted);
  assert.equal(folder.path, wanted);
  const link = join(scratch, "link");
  symlinkSync(wanted, link);
  assert.equal(new MachineFolder(link).path, wanted, "a link is followed once");
});

test("a folder that others may enter or own is refused, and so is a file", () => {
  const open = join(scratch, "open");
  mkdirSync(open);
  for (const mode of [0o777, 0o750, 0o701, 0o720]) {
    chmodSync(open, mode);
    assert.throws(() => new MachineFolder(open).path, {
      code: "EACCES",
      message: `${open}: others may enter the folder (mode ${mode.toString(8)}); take it for yourself with chmod 700`,
    });
  }
  const file = join(scratch, "a.img");
  writeFileSync(file, "");
  assert.throws(() => new MachineFolder(file).path, {
    code: "ENOTDIR",
    message: `${file}: is not a folder`,
  });
  // Only root can give a folder away; others find "/" to be somebody else's.
  let foreign = "/";
  if (process.geteuid?.() === 0) {
    foreign = join(scratch, "foreign");
    mkdirSync(foreign, { mode: 0o700 });
    chownSync(foreign, 65534, 65534);
  }
  assert.throws(() => new MachineFolder(foreign).path, {
    code: "EACCES",
    message: `${foreign}: the folder belongs to another user`,
  });
});
