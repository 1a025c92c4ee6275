import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import {
  XENSTORE_SERVER_FEATURE_ERROR,
  XENSTORE_SERVER_FEATURE_RECONNECTION,
} from "../../src/wire/xenstore.ts";
import * as wire from "../../src/wire/xenstore-ring.ts";
import { GNTTAB_RESERVED_XENSTORE } from "../../src/xen/xenstore/ring-service.ts";
import { CProgram, compiledProtocols } from "./c-program.ts";

for (const protocol of compiledProtocols) {
  test(`the xenstore's page is laid out as xs_wire.h has it (${protocol})`, () => {
    using program = new CProgram(join(import.meta.dirname, "xenstore-ring.c"), protocol);
    const { XenStoreInterface, ...facts } = wire;
    const ours = {
      ...XenStoreInterface,
      ...facts,
      XENSTORE_SERVER_FEATURE_ERROR,
      XENSTORE_SERVER_FEATURE_RECONNECTION,
      GNTTAB_RESERVED_XENSTORE,
    };
    const theirs = program.run([]).map((line) => line.split(" "));
    assert.deepEqual(
      Object.fromEntries(theirs.map(([name, value]) => [name, Number(value)])),
      ours,
    );
  });
}
