/** Rings full of rubbish and sense, under limits that pinch: all is answered, and nothing stays behind. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { SeededRandom } from "../../src/util/random.ts";
import { BLKIF_OP_INDIRECT } from "../../src/wire/blkif.ts";
import { backendWorld } from "./backend-world.ts";

const ROUNDS = 12;

for (const persistent of [false, true]) {
  test(`whatever two rings carry, every request is answered once (persistent grants: ${persistent})`, async () => {
    const seed = Math.floor(Math.random() * 2 ** 32);
    const random = new SeededRandom(seed);
    await using at = await backendWorld({
      limits: { maxBufferPages: 20, maxPersistentGrants: 12 },
      delay: "1ms",
    });
    const { frontend } = at;
    await frontend.connect(0, { queues: 2, persistent, pages: 48 });
    for (let round = 0; round < ROUNDS; round++) {
      const expected: Set<number>[] = [new Set(), new Set()];
      for (const queue of [0, 1]) {
        const requests = Array.from({ length: 1 + random.below(20) }, () => {
          const request = frontend.transfer(random.below(8), random.below(2100), 0);
          const mostly = random.below(8) !== 0;
          request.segmentCount = random.below(mostly ? 12 : 256);
          for (let i = 0; i < 11; i++) {
            const page = frontend.data.references[random.below(48)]!;
            request.references[i] = mostly ? page : random.below(40_000);
            request.firstSectors[i] = random.below(mostly ? 1 : 10);
            request.lastSectors[i] = random.below(mostly ? 8 : 256);
          }
          request.discardSectorsLow = random.below(100);
          if (request.operation === BLKIF_OP_INDIRECT) {
            request.indirectOperation = random.below(7);
            request.indirectSegmentCount = random.below(300);
            // Data of other requests, read as a list of segments.
            request.indirectReferences[0] = frontend.data.references[random.below(48)]!;
          }
          expected[queue]!.add(request.idLow);
          return request;
        });
        frontend.sendTo(queue, ...requests);
      }
      for (const queue of [0, 1]) {
        while (expected[queue]!.size > 0) {
          const { idLow } = await frontend.receive(queue);
          assert.ok(expected[queue]!.delete(idLow), `seed ${seed}: ${idLow} was not asked`);
        }
      }
      const { requests, responses, inFlight } = at.backend.counters!;
      assert.deepEqual([responses, inFlight], [requests, 0], `seed ${seed}`);
    }
    await frontend.close();
    assert.equal(at.dom0.grants.counters.mapped, 0, `seed ${seed}`);
  });
}
