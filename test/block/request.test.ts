import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  BrokenRule,
  type DeviceFacts,
  parseHead,
  parseSegments,
  ValidRequest,
} from "../../src/block/backend/request.ts";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_RESERVED_1,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BlkifRequest,
} from "../../src/wire/blkif.ts";

const device: DeviceFacts = {
  sectors: 1000,
  readOnly: false,
  sectorsPerBlock: 1,
  sectorUnit: 1,
  segmentUnit: 1,
  maxIndirectSegments: 256,
  discard: true,
  secureDiscard: true,
};

/** A request for `count` whole pages at a sector. */
function transfer(operation: number, sector: number, count: number): BlkifRequest {
  const request = new BlkifRequest();
  request.operation = operation;
  request.segmentCount = count;
  request.sectorLow = sector >>> 0;
  request.sectorHigh = Math.floor(sector / 2 ** 32);
  for (let i = 0; i < Math.min(count, 11); i++) {
    request.references[i] = 8 + i;
    request.firstSectors[i] = 0;
    request.lastSectors[i] = 7;
  }
  return request;
}

function parse(request: BlkifRequest, facts: DeviceFacts = device): BrokenRule {
  const valid = new ValidRequest();
  const rule = parseHead(request, facts, valid);
  return rule === BrokenRule.none && valid.operation !== BLKIF_OP_DISCARD
    ? parseSegments(facts, valid)
    : rule;
}

test("a transfer of one to eleven pages within the device is valid", () => {
  for (let count = 1; count <= 11; count++) {
    assert.equal(parse(transfer(BLKIF_OP_READ, 1000 - count * 8, count)), BrokenRule.none);
  }
});

test("twelve segments in a slot are refused, and so are none", () => {
  assert.equal(parse(transfer(BLKIF_OP_READ, 0, 12)), BrokenRule.segmentCount);
  assert.equal(parse(transfer(BLKIF_OP_WRITE, 0, 255)), BrokenRule.segmentCount);
  assert.equal(parse(transfer(BLKIF_OP_READ, 0, 0)), BrokenRule.segmentCount);
});

test(
  "a flush or barrier may carry no segments",
  shows(["1.16"], () => {
    assert.equal(parse(transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, 0)), BrokenRule.none);
    assert.equal(parse(transfer(BLKIF_OP_WRITE_BARRIER, 0, 0)), BrokenRule.none);
  }),
);

test("sectors beyond the page, or in the wrong order, are refused", () => {
  const beyond = transfer(BLKIF_OP_READ, 0, 1);
  beyond.lastSectors[0] = 8;
  assert.equal(parse(beyond), BrokenRule.segmentSectors);
  const backwards = transfer(BLKIF_OP_READ, 0, 1);
  backwards.firstSectors[0] = 5;
  backwards.lastSectors[0] = 4;
  assert.equal(parse(backwards), BrokenRule.segmentSectors);
});

test(
  "a request past the end is refused, however large its sector is",
  shows(["1.14", "4.5.7"], () => {
    assert.equal(parse(transfer(BLKIF_OP_READ, 993, 1)), BrokenRule.endOfDevice);
    for (const [low, high] of [
      [0, 0xffff_ffff],
      [0xffff_ffff, 0xffff_ffff],
      [0xffff_fffc, 0x001f_ffff],
    ] as const) {
      const request = transfer(BLKIF_OP_READ, 0, 1);
      request.sectorLow = low;
      request.sectorHigh = high;
      assert.equal(parse(request), BrokenRule.endOfDevice);
    }
  }),
);

test("a read-only device refuses writes and discards, and takes reads and flushes", () => {
  const readOnly = { ...device, readOnly: true };
  assert.equal(parse(transfer(BLKIF_OP_WRITE, 0, 1), readOnly), BrokenRule.readOnly);
  assert.equal(parse(transfer(BLKIF_OP_WRITE_BARRIER, 0, 1), readOnly), BrokenRule.readOnly);
  assert.equal(parse(transfer(BLKIF_OP_DISCARD, 0, 0), readOnly), BrokenRule.readOnly);
  assert.equal(parse(transfer(BLKIF_OP_READ, 0, 1), readOnly), BrokenRule.none);
  assert.equal(parse(transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, 0), readOnly), BrokenRule.none);
});

test(
  "on a device of 4 KiB blocks every segment is whole blocks",
  shows(["1.15"], () => {
    const coarse = { ...device, sectorsPerBlock: 8 };
    assert.equal(parse(transfer(BLKIF_OP_READ, 8, 2), coarse), BrokenRule.none);
    assert.equal(parse(transfer(BLKIF_OP_READ, 4, 2), coarse), BrokenRule.alignment);
    const half = transfer(BLKIF_OP_READ, 8, 2);
    half.lastSectors[0] = 3;
    assert.equal(parse(half, coarse), BrokenRule.alignment);
  }),
);

test(
  "a discard is checked for its range, its flag and whether it was offered",
  shows(["4.4.5"], () => {
    const request = transfer(BLKIF_OP_DISCARD, 10, 0);
    request.discardFlag = BLKIF_DISCARD_SECURE;
    request.discardSectorsLow = 990;
    const valid = new ValidRequest();
    assert.equal(parseHead(request, device, valid), BrokenRule.none);
    assert.deepEqual([valid.sector, valid.sectorCount, valid.secure], [10, 990, true]);
    request.discardSectorsLow = 991;
    assert.equal(parse(request), BrokenRule.endOfDevice);
    request.discardSectorsHigh = 0xffff_ffff;
    assert.equal(parse(request), BrokenRule.endOfDevice);
    assert.equal(parse(request, { ...device, discard: false }), BrokenRule.discardRefused);
  }),
);

test("an indirect request carries reads, writes and barriers, as many as were offered", () => {
  const request = transfer(BLKIF_OP_INDIRECT, 0, 0);
  const valid = new ValidRequest();
  for (const operation of [BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER]) {
    request.indirectOperation = operation;
    request.indirectSegmentCount = 256;
    assert.equal(parseHead(request, device, valid), BrokenRule.none);
    assert.equal(valid.operation, operation);
    request.indirectSegmentCount = 257;
    assert.equal(parseHead(request, device, valid), BrokenRule.segmentCount);
    request.indirectSegmentCount = 0;
    assert.equal(parseHead(request, device, valid), BrokenRule.segmentCount);
  }
  request.indirectSegmentCount = 1;
  for (const operation of [BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 77]) {
    request.indirectOperation = operation;
    assert.equal(parseHead(request, device, valid), BrokenRule.indirectOperation);
  }
});

test("an operation that nobody knows is told apart", () => {
  for (const operation of [BLKIF_OP_RESERVED_1, 7, 255]) {
    assert.equal(parse(transfer(operation, 0, 1)), BrokenRule.unknownOperation);
  }
});

test("whatever a slot holds, what is called valid lies within the device and the pages", () => {
  const byte = fc.nat(255);
  const word = fc.oneof(fc.nat(1100), fc.nat(0xffff_ffff));
  fc.assert(
    fc.property(
      fc.record({
        operation: fc.nat(7),
        count: byte,
        low: word,
        high: fc.oneof(fc.constant(0), word),
      }),
      fc.array(fc.tuple(byte, byte), { minLength: 11, maxLength: 11 }),
      (head, sectors) => {
        const request = transfer(head.operation, 0, head.count);
        request.sectorLow = head.low;
        request.sectorHigh = head.high;
        request.discardSectorsLow = head.low;
        for (const [i, [first, last]] of sectors.entries()) {
          request.firstSectors[i] = first & (head.count & 1 ? 7 : 255);
          request.lastSectors[i] = last & (head.count & 1 ? 7 : 255);
        }
        const valid = new ValidRequest();
        if (parseHead(request, device, valid) !== BrokenRule.none) return;
        if (valid.operation !== BLKIF_OP_DISCARD && valid.indirect === false) {
          if (parseSegments(device, valid) !== BrokenRule.none) return;
          for (let i = 0; i < valid.count; i++) {
            assert.ok(valid.firstSectors[i]! <= valid.lastSectors[i]! && valid.lastSectors[i]! < 8);
          }
        }
        if (valid.sectorCount > 0) assert.ok(valid.sector + valid.sectorCount <= device.sectors);
      },
    ),
  );
});
