/** A disk of several rings on each link: what is told of it, in all and ring by ring. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Link, Machine, parseDisk } from "../../src/index.ts";
import { Reactor } from "../../src/io/reactor.ts";

for (const link of ["thread", "worker", "process"] satisfies Link[]) {
  test(`three rings on a ${link} carry one disk, and the report has each of them`, async () => {
    await using machine = await Machine.start({ reactor: new Reactor() });
    await using disk = await machine.attach(parseDisk(["memory", "4M"]), {
      vdev: "xvda",
      link,
      frontend: { maxQueues: 3 },
    });
    const data = Buffer.alloc(2 ** 20);
    for (let i = 0; i < data.length; i++) data[i] = (i >> 9) & 255;
    await Promise.all([0, 1, 2, 3].map((mebibyte) => disk.write(mebibyte * 2 ** 20, data)));
    await disk.flush();
    assert.deepEqual(Buffer.from(await disk.read(2 ** 20, 2 ** 20)), data);
    const { backend, rings, ring, negotiated } = await disk.information();
    assert.equal(negotiated.queues, 3);
    assert.equal(backend.rings.length, 3);
    assert.equal(rings.length, 3);
    assert.deepEqual(rings[0], ring);
    const sum = (of: (each: (typeof backend.rings)[number]) => number) =>
      backend.rings.reduce((total, each) => total + of(each), 0);
    assert.equal(
      sum(({ queue }) => queue.requests),
      backend.queue!.requests,
    );
    assert.equal(
      sum(({ indexes }) => indexes.responsesProduced),
      backend.queue!.responses,
    );
    assert.equal(backend.statistics!.wr_sect, 4 * 2048);
    assert.equal(
      sum(({ statistics }) => statistics.wr_sect),
      4 * 2048,
    );
    assert.ok(backend.statistics!.f_req >= 1);
  });
}
