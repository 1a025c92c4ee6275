/** A xenstore whose state cannot be written: clients do not notice, and no later daemon begins with what is behind. */
import assert from "node:assert/strict";
import { existsSync, statSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { XS_READ, XS_WATCH, XS_WRITE } from "../../../src/wire/xenstore.ts";
import { connectRing } from "../../../src/xen/xenstore/ring-guest.ts";
import { StoreDaemon } from "../../support/store-daemon.ts";
import { RawClient } from "./raw-client.ts";
import { fastFolder } from "./whole-tree.ts";

const VALUE_BYTES = 1000;
const value = (i: number): string => `${i}`.padEnd(VALUE_BYTES, ".");

/** Writes until the daemon has said something more; resolves to the last number that was written. */
async function writeUntilNoted(daemon: StoreDaemon, guest: RawClient, from: number) {
  const before = daemon.notes.length;
  let number = from;
  while (daemon.notes.length === before) {
    assert.equal(await guest.raw(XS_WRITE, `number\0${value(++number)}`), "OK");
    assert.ok(number < from + 10_000, "the daemon says nothing");
    await sleep(10);
  }
  return number;
}

test("a xenstore whose disk is full serves on, sets aside what is behind, and keeps all again when there is room", async () => {
  await using folder = await fastFolder();
  const file = folder.file("state");
  const incomplete = `${file}.incomplete`;
  await using daemon = new StoreDaemon({ file, domains: 1 });
  await daemon.start();
  const guest = new RawClient(connectRing(daemon.ring(1)));
  assert.equal(await guest.ask(XS_WATCH, ["number", "token"]), "OK");
  const room = statSync(file).size + 10 * VALUE_BYTES;

  daemon.limitFiles(room);
  let last = await writeUntilNoted(daemon, guest, 0);
  assert.match(daemon.notes[0]!, /state is not kept any more: EFBIG.*state\.incomplete$/);
  assert.deepEqual([existsSync(file), existsSync(incomplete)], [false, true]);
  assert.ok(statSync(incomplete).size <= room);
  assert.equal(await guest.ask(XS_READ, ["number"]), value(last));

  // When it is tried again there is room.
  daemon.limitFiles("unlimited");
  last = await writeUntilNoted(daemon, guest, last);
  assert.match(daemon.notes[1]!, /state is kept again in .*state$/);
  assert.equal(await guest.ask(XS_WRITE, ["after", "kept"]), "OK");
  guest.takeEvents();
  await daemon.end("SIGKILL");

  await daemon.start();
  assert.equal(await guest.ask(XS_READ, ["number"]), value(last));
  assert.equal(await guest.ask(XS_READ, ["after"]), "kept");
  assert.equal(await guest.ask(XS_WRITE, ["number", "new"]), "OK");
  assert.deepEqual(guest.takeEvents(), ["number token"]);
  assert.equal(daemon.notes.length, 2);
});
