/** The rules of requests and rings, broken one by one before a backend. */
import assert from "node:assert/strict";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_RSP_OKAY,
  type BlkifProtocol,
  type BlkifRequest,
} from "../wire/blkif.ts";
import { type BackendBench, type BackendSuiteOptions, SECTORS_PER_PAGE } from "./backend-bench.ts";
import type { BackendTest } from "./backend-suite.ts";
import type { ScriptedFrontend } from "./scripted-frontend.ts";

const refused = [BLKIF_RSP_ERROR, BLKIF_RSP_EOPNOTSUPP];

export function backendRules(register: BackendTest, options: BackendSuiteOptions): void {
  const writable = options.readOnly !== true;
  register(["1.10", "1.6", "1.11"], "answers operations that nobody knows, and lives on", (bench) =>
    each(bench, ({ request }) => [4, 7, 99, 255].map((operation) => request(operation))),
  );
  register(["1.12", "1.16"], "refuses counts of segments that no request may have", (bench) =>
    each(bench, ({ request }) =>
      [0, 12, 32, 255].map((segmentCount) => request(BLKIF_OP_READ, { segmentCount })),
    ),
  );
  register(["1.13"], "refuses segments that leave their page or end before they begin", (bench) =>
    each(bench, ({ transfer }) =>
      [
        [0, 8],
        [7, 6],
        [0, 255],
        [255, 255],
      ].map(([first, last]) => {
        const request = transfer(BLKIF_OP_READ, 0, 2);
        request.firstSectors[1] = first!;
        request.lastSectors[1] = last!;
        return request;
      }),
    ),
  );
  register(["1.14"], "refuses what lies beyond the end, however large the numbers", (bench) =>
    each(bench, ({ transfer, sectors }) => [
      transfer(BLKIF_OP_READ, sectors, 1),
      transfer(BLKIF_OP_READ, sectors - SECTORS_PER_PAGE, 2),
      transfer(BLKIF_OP_READ, sectors - 1, 1),
      ...[1, 0x1f_ffff, 0x20_0000, 0xffff_ffff].flatMap((sectorHigh) =>
        [0, 0xffff_fff8, 0xffff_ffff].map((low) =>
          Object.assign(transfer(BLKIF_OP_READ, low, 1), { sectorHigh }),
        ),
      ),
    ]),
  );
  register(
    ["1.14", "4.4.5"],
    "refuses discards beyond the end, or answers that it has none",
    (bench) =>
      each(bench, ({ request, sectors }) => [
        request(BLKIF_OP_DISCARD, { sectorLow: sectors, discardSectorsLow: 8 }),
        request(BLKIF_OP_DISCARD, { sectorLow: 8, discardSectorsLow: sectors }),
        request(BLKIF_OP_DISCARD, { sectorLow: 8, discardSectorsHigh: 0xffff_ffff }),
        request(BLKIF_OP_DISCARD, { sectorHigh: 0xffff_ffff, discardSectorsLow: 8 }),
      ]),
  );
  register(["4.7.8"], "refuses pages that were never granted, and maps nothing then", (bench) =>
    each(bench, ({ transfer }) =>
      [0, 7, 30_000, 0x7fff_ffff, 0xffff_ffff].map((reference) => {
        const request = transfer(BLKIF_OP_READ, 0, 3);
        request.references[1] = reference;
        return request;
      }),
    ),
  );
  register(["1.9", "4.2.3", "4.2.4"], "refuses indirect requests that cannot be", (bench) =>
    each(bench, ({ indirect, offered }) => {
      const inside = [BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, 4, 6, 77].map((operation) =>
        indirect(operation, 0, 1),
      );
      const counts = [0, offered + 1, 4097, 65535].map((count) =>
        Object.assign(indirect(BLKIF_OP_READ, 0, 1), { indirectSegmentCount: count }),
      );
      const list = indirect(BLKIF_OP_READ, 0, 1);
      list.indirectReferences[0] = 30_000;
      return [...inside, ...counts, list];
    }),
  );
  register(
    ["1.17", "8.13"],
    "names the inner operation in the answer to an indirect request",
    async (bench) => {
      const frontend = await bench.connected({ pages: 64 });
      if ((await frontend.backendNumber("feature-max-indirect-segments")) < 16) return false;
      for (const sector of [0, 0xffff_0000]) {
        frontend.send(frontend.indirect(BLKIF_OP_READ, sector, 16));
        assert.equal((await frontend.receive()).operation, BLKIF_OP_READ);
      }
      return true;
    },
  );
  register(["2.15"], "leaves nothing of its memory in the padding of an answer", async (bench) => {
    const frontend = await bench.connected();
    for (let i = 0; i < 40; i++) {
      const index = frontend.ring.responsesConsumed;
      const request = frontend.transfer(BLKIF_OP_READ, 0, 1);
      Object.assign(request, { idHigh: 0xfeed_f00d, idLow: 0xffff_fff0 + (i & 7) });
      assert.equal(await frontend.status(request), BLKIF_RSP_OKAY);
      const slot = frontend.slot(0, index);
      assert.deepEqual(Array.from(slot.subarray(12, 16)), [0, 0, 0, 0]);
    }
  });
  for (const protocol of ["x86_64-abi", "x86_32-abi", "arm-abi"] satisfies BlkifProtocol[]) {
    register(
      ["2.2", "2.3", "2.6", "2.11"],
      `keeps every slot of a ring of any size busy (${protocol})`,
      (bench) => everySlot(bench, protocol),
    );
  }
  register(["2.13"], "stops a ring whose producer index cannot be, without spinning", (bench) =>
    bogusIndex(bench),
  );
  if (writable) {
    register(
      ["1.4", "1.5", "4.3.5"],
      "puts a barrier after what came before, and its data on the disk",
      ordered,
    );
  } else {
    register(
      ["4.5.3", "4.5.6", "4.4.7"],
      "refuses changes of a read-only disk, and says so in info",
      readOnly,
    );
  }
}

interface Tools {
  readonly sectors: number;
  /** Segments of an indirect request that are offered. */
  readonly offered: number;
  readonly request: ScriptedFrontend["request"];
  readonly transfer: ScriptedFrontend["transfer"];
  readonly indirect: ScriptedFrontend["indirect"];
}

/** Sends each request; all are refused, nothing stays mapped, and an honest request still works. */
async function each(bench: BackendBench, make: (tools: Tools) => BlkifRequest[]): Promise<void> {
  const frontend = await bench.connected();
  const requests = make({
    sectors: await frontend.backendNumber("sectors"),
    offered: await frontend.backendNumber("feature-max-indirect-segments"),
    request: frontend.request.bind(frontend),
    transfer: frontend.transfer.bind(frontend),
    indirect: frontend.indirect.bind(frontend),
  });
  for (const [index, request] of requests.entries()) {
    const status = await frontend.status(request);
    assert.ok(refused.includes(status), `request ${index} was answered with ${status}`);
    assert.ok(frontend.regrant(0, frontend.data.count), `request ${index} left a page mapped`);
  }
  assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 11)), BLKIF_RSP_OKAY);
  await frontend.close();
  bench.assertNothingHeld(frontend);
}

async function everySlot(bench: BackendBench, protocol: BlkifProtocol): Promise<void> {
  const first = bench.frontend();
  await first.backendIs(2);
  const largest = await first.backendNumber("max-ring-page-order");
  for (let ringOrder = 0; ringOrder <= largest; ringOrder++) {
    const frontend = await bench.connected({ protocol, ringOrder, waitsForEvents: true });
    const { size } = frontend.ring;
    const waiting = new Set<number>();
    // Several rounds, so that the indexes go round.
    for (let round = 0; round < 3; round++) {
      const batch: BlkifRequest[] = [];
      // Every page in turn: Xen maps one no more than 128 times at once.
      for (let i = 0; i < size; i++) {
        const page = i % frontend.data.count;
        batch.push(frontend.transfer(BLKIF_OP_READ, 8 * (i % 64), 1, page));
      }
      for (const { idLow } of batch) waiting.add(idLow);
      frontend.send(...batch);
      for (let i = 0; i < size; i++) {
        const response = await frontend.receive();
        assert.equal(response.status, BLKIF_RSP_OKAY);
        assert.ok(waiting.delete(response.idLow), "an answer to what was not asked");
      }
      assert.equal(frontend.ring.pending(), 0);
    }
    await frontend.close();
    bench.assertNothingHeld(frontend);
    await frontend.become(1);
    await frontend.backendIs(2);
  }
}

/** This process, in time: a machine that is slow may have other things to end first, such as compiling what has run. */
async function comesToRest(): Promise<void> {
  for (let looks = 0; looks < 50; looks++) {
    const before = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const { user, system } = process.cpuUsage(before);
    if (user + system < 50_000) return;
  }
  assert.fail("it spins");
}

async function bogusIndex(bench: BackendBench): Promise<void> {
  for (const producer of [33, 100_000, -1]) {
    const frontend = await bench.connected();
    frontend.publishIndex(producer);
    await comesToRest();
    // It may go to Closing at once or wait to be told.
    await frontend.become(6);
    await frontend.backendIs(6);
    bench.assertNothingHeld(frontend);
    await frontend.become(1);
    await frontend.backendIs(2);
  }
}

async function ordered(bench: BackendBench): Promise<void> {
  const frontend = await bench.connected({ pages: 64 });
  const offers = async (key: string) => (await frontend.backendKey(key)) === "1";
  const operations: number[] = [];
  if (await offers("feature-flush-cache")) operations.push(BLKIF_OP_FLUSH_DISKCACHE);
  if (await offers("feature-barrier")) operations.push(BLKIF_OP_WRITE_BARRIER);
  for (const operation of operations) {
    assert.equal(await frontend.status(frontend.request(operation)), BLKIF_RSP_OKAY);
    for (let i = 0; i < 16; i++) frontend.page(i).fill(operation * 16 + i);
    const writes = Array.from({ length: 8 }, (_, i) =>
      frontend.transfer(BLKIF_OP_WRITE, i * SECTORS_PER_PAGE, 1, i),
    );
    // A barrier over the same sectors, and one more write over it: the last in the ring is what remains.
    const barrier = frontend.transfer(operation, 0, 8, 8);
    frontend.send(...writes, frontend.request(operation));
    for (let i = 0; i < 9; i++) assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
    if (operation !== BLKIF_OP_WRITE_BARRIER) continue;
    for (let i = 0; i < 8; i++) frontend.page(i + 16).fill(0xcc);
    const again = writes.map((_, i) =>
      frontend.transfer(BLKIF_OP_WRITE, i * SECTORS_PER_PAGE, 1, i),
    );
    const after = frontend.transfer(BLKIF_OP_WRITE, 0, 4, 16);
    frontend.send(...again, barrier, after);
    for (let i = 0; i < 10; i++) assert.equal((await frontend.receive()).status, BLKIF_RSP_OKAY);
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 8, 24)), BLKIF_RSP_OKAY);
    for (let i = 0; i < 8; i++) {
      const expected: number = i < 4 ? 0xcc : operation * 16 + 8 + i;
      assert.equal(frontend.page(24 + i)[100], expected & 0xff, `page ${i}`);
    }
  }
}

async function readOnly(bench: BackendBench): Promise<void> {
  const frontend = await bench.connected();
  assert.equal((await frontend.backendNumber("info")) & 4, 4);
  assert.ok(refused.includes(await frontend.status(frontend.transfer(BLKIF_OP_WRITE, 0, 1))));
  assert.ok(
    refused.includes(await frontend.status(frontend.transfer(BLKIF_OP_WRITE_BARRIER, 0, 1))),
  );
  const discard = frontend.request(BLKIF_OP_DISCARD, { discardSectorsLow: 8 });
  assert.ok(refused.includes(await frontend.status(discard)));
  assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
}
