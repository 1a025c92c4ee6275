/** How much one end of a ring does before it shows the other what it has done. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { batchOf } from "../../src/block/batch.ts";
import { Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";
import type { EventChannel } from "../../src/xen/domain.ts";
import { EmbeddedMachine } from "../../src/xen/embedded/index.ts";

const channel = (sharesThread: boolean) => ({ sharesThread }) as EventChannel;

test("a peer on this thread gets all at once, one that works meanwhile gets sixteen at a time", () => {
  assert.equal(batchOf(channel(true), 128), 128);
  assert.equal(batchOf(channel(false), 128), 16);
  assert.equal(batchOf(channel(false), 8), 8);
});

test("a port knows whether its peer is on this thread", async () => {
  await using machine = await EmbeddedMachine.create({ reactor: new Reactor() });
  const [one, two] = [await machine.createDomain(0), await machine.createDomain(1)];
  using near = one.events.allocateUnbound(1);
  assert.equal(near.sharesThread, true);
  using bound = two.events.bindInterdomain(0, near.port);
  assert.equal(bound.sharesThread, true);
  await machine.destroyDomain(1);
  assert.equal(near.sharesThread, false, "nobody is there");
});

test("rings to a worker go round in batches, with every request answered", async () => {
  await using machine = await Machine.start();
  await using disk = await machine.attach(parseDisk(["memory", "8M"], []), {
    vdev: "xvda",
    link: "worker",
  });
  const pages = Array.from({ length: 500 }, (_, i) => new Uint8Array(4096).fill(i % 251));
  await Promise.all(pages.map((bytes, i) => disk.write(i * 8192, bytes)));
  const read = await Promise.all(pages.map((_, i) => disk.read(i * 8192, 4096)));
  assert.deepEqual(read, pages);
});
