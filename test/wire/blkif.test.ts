import assert from "node:assert/strict";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { shows } from "../../src/testing/index.ts";
import {
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_SEGMENTS_PER_INDIRECT_PAGE,
  type BlkifProtocol,
  BlkifRequest,
  BlkifResponse,
  blkifLayout,
  highHalf,
  IndirectSegments,
  indirectPageCount,
  lowHalf,
  parseBlkifProtocol,
  readRequest,
  readResponse,
  sectorOf,
  writeRequest,
  writeResponse,
} from "../../src/wire/blkif.ts";
import * as wire from "../../src/wire/index.ts";
import { CProgram, compiledProtocols } from "./c-program.ts";

const seed = Math.floor(Math.random() * 2 ** 31);
const slotCount = 2000;
const programs = new Map<BlkifProtocol, CProgram>();
after(() => {
  for (const program of programs.values()) program[Symbol.dispose]();
});
for (const protocol of compiledProtocols) {
  programs.set(protocol, new CProgram(join(import.meta.dirname, "blkif.c"), protocol));
}

/** What the header's structures read in a slot: its fields by our names, arrays only as far as they count. */
interface Read {
  readonly [field: string]: number | readonly number[] | string;
  readonly hex: string;
}

function ask(protocol: BlkifProtocol, parameters: readonly string[], slots?: readonly string[]) {
  const lines = programs.get(protocol)!.run(parameters, slots?.join("\n"));
  return lines.map((line) => JSON.parse(line) as Read);
}

function wordsOf(hex: string): Uint32Array {
  const bytes = Uint8Array.from(Buffer.from(hex, "hex"));
  return new Uint32Array(bytes.buffer);
}

function hexOf(words: Uint32Array): string {
  return Buffer.from(words.buffer, words.byteOffset, words.byteLength).toString("hex");
}

/** The fields of ours that the structures read, cut to the same length. */
function sameFields(ours: object, theirs: Read): Read {
  const fields: [string, number | readonly number[] | string][] = [["hex", theirs.hex]];
  for (const [name, value] of Object.entries(theirs)) {
    if (name === "hex" || name === "padding") continue;
    const own: unknown = ours[name as keyof typeof ours];
    if (typeof value === "object") {
      fields.push([name, Array.from(own as Uint32Array).slice(0, value.length)]);
    } else fields.push([name, own as number]);
  }
  if ("padding" in theirs) fields.push(["padding", theirs.padding!]);
  return Object.fromEntries(fields) as unknown as Read;
}

for (const protocol of compiledProtocols) {
  const layout = blkifLayout(protocol);
  const slotWords = layout.requestSize / 4;

  test(
    `${protocol}: constants, sizes and the ring's header are those of Xen's headers`,
    shows(["2.1", "2.2", "2.3"], () => {
      const [facts] = ask(protocol, ["facts"]) as unknown as [
        {
          constants: Record<string, number | string>;
          header: Record<string, number>;
          native: string;
          requestSize: number;
          responseSize: number;
          idOffset: number;
          ringSizes: number[];
        },
      ];
      const named: Record<string, unknown> = { ...wire };
      for (const [name, value] of Object.entries(facts.constants)) {
        assert.equal(named[name], value, name);
      }
      for (const [name, offset] of Object.entries(facts.header)) {
        assert.equal((named[name] as number) * 4, offset, name);
      }
      assert.equal(layout.requestSize, facts.requestSize);
      assert.equal(layout.responseSize, facts.responseSize);
      assert.equal(layout.body * 4, facts.idOffset);
      assert.equal(facts.native, protocol);
      const sizes = facts.ringSizes.map((_, i) =>
        wire.ringSize((i + 1) * wire.RING_PAGE_SIZE, layout.requestSize),
      );
      assert.equal(sizes.length, wire.MAX_RING_PAGES);
      assert.deepEqual(sizes, facts.ringSizes);
    }),
  );

  test(`${protocol}: we read in any bytes what the C structures read (seed ${seed})`, () => {
    const request = new BlkifRequest();
    for (const theirs of ask(protocol, ["slots", String(seed), String(slotCount)])) {
      const words = new Uint32Array(slotWords + 7);
      words.set(wordsOf(theirs.hex), 7);
      readRequest(layout, words, 7, request);
      assert.deepEqual(sameFields(request, theirs), theirs);
    }
    const response = new BlkifResponse();
    for (const theirs of ask(protocol, ["responses", String(seed), String(slotCount)])) {
      readResponse(wordsOf(theirs.hex), 0, response);
      assert.deepEqual(sameFields(response, theirs), theirs);
    }
  });

  test(`${protocol}: the C structures read what we wrote, over any older bytes (seed ${seed})`, () => {
    const requests: BlkifRequest[] = [];
    const slots = fc.sample(requestArbitrary, { seed, numRuns: slotCount }).map((request) => {
      const words = new Uint32Array(slotWords).fill(0xa5a5_5a5a);
      writeRequest(layout, words, 0, request);
      requests.push(request);
      return hexOf(words);
    });
    for (const [i, theirs] of ask(protocol, ["read"], slots).entries()) {
      assert.deepEqual(sameFields(requests[i]!, theirs), theirs);
    }
  });

  test(
    `${protocol}: responses leak no byte of older memory (seed ${seed})`,
    shows(["2.15"], () => {
      const responses: BlkifResponse[] = [];
      const slots = fc.sample(responseArbitrary, { seed, numRuns: slotCount }).map((response) => {
        const words = new Uint32Array(slotWords).fill(0xffff_ffff);
        const { idLow, idHigh, operation, status } = response;
        writeResponse(layout, words, 0, idLow, idHigh, operation, status);
        assert.ok(
          words.subarray(layout.responseSize / 4).every((word) => word === 0xffff_ffff),
          "nothing beyond the response is written",
        );
        responses.push(response);
        return hexOf(words);
      });
      for (const [i, theirs] of ask(protocol, ["read-responses"], slots).entries()) {
        assert.deepEqual(sameFields(responses[i]!, theirs), theirs);
        assert.equal(theirs.padding, 0);
      }
    }),
  );

  test(
    `${protocol}: no word of a slot is read twice (seed ${seed})`,
    shows(["2.12"], () => {
      const pristine = new BlkifRequest();
      const request = new BlkifRequest();
      for (const { hex } of ask(protocol, ["slots", String(seed), "500"])) {
        readRequest(layout, wordsOf(hex), 0, pristine);
        const { words, reads } = changedAfterReading(wordsOf(hex));
        readRequest(layout, words, 0, request);
        assert.deepEqual(request, pristine);
        for (const [index, count] of reads) assert.equal(count, 1, `word ${index}`);
        const response = new BlkifResponse();
        const pristineResponse = new BlkifResponse();
        readResponse(wordsOf(hex), 0, pristineResponse);
        const changing = changedAfterReading(wordsOf(hex));
        readResponse(changing.words, 0, response);
        assert.deepEqual(response, pristineResponse);
        assert.deepEqual([...changing.reads.values()], [1, 1, 1]);
      }
    }),
  );
}

/** Memory of a peer that rewrites every word as soon as it was read. */
function changedAfterReading(memory: Uint32Array) {
  const reads = new Map<string, number>();
  const words = new Proxy(memory, {
    get(target, name) {
      const index = String(name);
      const value = target[Number(index)]!;
      reads.set(index, (reads.get(index) ?? 0) + 1);
      target[Number(index)] = value ^ 0xffff_ffff;
      return value;
    },
  });
  return { words, reads };
}

const word = fc.nat(0xffff_ffff);
const byte = fc.nat(255);

/** Requests as a frontend makes them, and counts as only a hostile one would. */
const requestArbitrary = fc
  .record({
    operation: fc.nat(BLKIF_OP_INDIRECT),
    segmentCount: fc.oneof(fc.nat(BLKIF_MAX_SEGMENTS_PER_REQUEST), byte),
    handle: fc.nat(0xffff),
    halves: fc.tuple(word, word, word, word, word, word),
    references: fc.array(word, { minLength: 11, maxLength: 11 }),
    sectors: fc.array(byte, { minLength: 22, maxLength: 22 }),
    discardFlag: byte,
    indirectOperation: byte,
    indirectSegmentCount: fc.oneof(fc.nat(4096), fc.nat(0xffff)),
    indirectReferences: fc.array(word, { minLength: 8, maxLength: 8 }),
  })
  .map(({ halves, references, sectors, indirectReferences, ...fields }) => {
    const request = Object.assign(new BlkifRequest(), fields);
    [request.idLow, request.idHigh, request.sectorLow, request.sectorHigh] = halves;
    [, , , , request.discardSectorsLow, request.discardSectorsHigh] = halves;
    request.references.set(references);
    request.firstSectors.set(sectors.slice(0, 11));
    request.lastSectors.set(sectors.slice(11));
    request.indirectReferences.set(indirectReferences);
    return request;
  });

const responseArbitrary = fc
  .record({
    idLow: word,
    idHigh: word,
    operation: byte,
    status: fc.oneof(fc.integer({ min: -2, max: 0 }), fc.integer({ min: -0x8000, max: 0x7fff })),
  })
  .map((fields) => Object.assign(new BlkifResponse(), fields));

test("what one of our ends writes the other reads, in a slot anywhere, in shared memory or not", () => {
  fc.assert(
    fc.property(
      requestArbitrary,
      fc.constantFrom(...compiledProtocols),
      fc.nat(40),
      fc.boolean(),
      (request, protocol, at, shared) => {
        const layout = blkifLayout(protocol);
        const words = new Uint32Array(shared ? new SharedArrayBuffer(4096) : new ArrayBuffer(4096));
        writeRequest(layout, words, at, request);
        const copy = new BlkifRequest();
        readRequest(layout, words, at, copy);
        assert.equal(copy.operation, request.operation);
        assert.equal(copy.idLow, request.idLow);
        assert.equal(copy.idHigh, request.idHigh);
        const again = new Uint32Array(words.length);
        writeRequest(layout, again, at, copy);
        if (request.operation !== wire.BLKIF_OP_RESERVED_1)
          assert.deepEqual([...again], [...words]);
      },
    ),
  );
});

test("a reused request keeps no segments, device or sector of an earlier one", () => {
  const layout = blkifLayout("native");
  const words = new Uint32Array(28);
  const request = new BlkifRequest();
  for (const operation of [BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 4, 7, 255]) {
    words.fill(0xffff_ffff);
    words[0] = 0xffff_ff00 | BLKIF_OP_READ;
    readRequest(layout, words, 0, request);
    assert.equal(request.segmentCount, 255);
    words.fill(0);
    words[0] = operation;
    readRequest(layout, words, 0, request);
    const { segmentCount, handle, sectorLow, sectorHigh } = request;
    assert.deepEqual([segmentCount, handle, sectorLow, sectorHigh], [0, 0, 0, 0]);
  }
});

test("a flush needs no segments, and the words of a refused operation are not even read", () => {
  const layout = blkifLayout("x86_64-abi");
  const { words, reads } = changedAfterReading(new Uint32Array(28).fill(9));
  readRequest(layout, words, 0, new BlkifRequest());
  assert.deepEqual([...reads.keys()], ["0", "2", "3"]);
  const flush = changedAfterReading(Uint32Array.of(BLKIF_OP_FLUSH_DISKCACHE, ...Array(27).fill(9)));
  readRequest(layout, flush.words, 0, new BlkifRequest());
  assert.deepEqual([...flush.reads.keys()], ["0", "2", "3", "4", "5"]);
});

test("indirect pages carry their segments, each word read once", () => {
  const segment = fc.tuple(word, byte, byte);
  fc.assert(
    fc.property(fc.array(segment, { maxLength: 600 }), (segments) => {
      const sent = new IndirectSegments(600);
      for (const [i, [reference, first, last]] of segments.entries()) {
        sent.references[i] = reference;
        sent.firstSectors[i] = first;
        sent.lastSectors[i] = last;
      }
      const got = new IndirectSegments(600);
      for (let page = 0; page < indirectPageCount(segments.length); page++) {
        const start = page * BLKIF_SEGMENTS_PER_INDIRECT_PAGE;
        const count = Math.min(segments.length - start, BLKIF_SEGMENTS_PER_INDIRECT_PAGE);
        const memory = new Uint32Array(1024);
        sent.write(memory, start, count);
        const { words, reads } = changedAfterReading(memory);
        got.read(words, start, count);
        assert.equal(reads.size, 2 * count);
        assert.ok([...reads.values()].every((times) => times === 1));
      }
      assert.deepEqual(got, sent);
    }),
    { numRuns: 25 },
  );
  assert.throws(() => new IndirectSegments(600).read(new Uint32Array(1024), 100, 501));
  assert.throws(() => new IndirectSegments(600).read(new Uint32Array(2048), 0, 513));
});

test("an indirect page looks as struct blkif_request_segment does", () => {
  const request = new BlkifRequest();
  request.segmentCount = 1;
  request.references[0] = 0x89ab_cdef;
  request.firstSectors[0] = 3;
  request.lastSectors[0] = 7;
  const layout = blkifLayout("x86_32-abi");
  const slot = new Uint32Array(27);
  writeRequest(layout, slot, 0, request);
  const segments = new IndirectSegments(1);
  segments.read(slot.subarray(5), 0, 1);
  assert.deepEqual([...segments.references], [0x89ab_cdef]);
  assert.deepEqual([...segments.firstSectors, ...segments.lastSectors], [3, 7]);
});

test(
  "a 64-bit sector is exact, or so large that every comparison refuses it",
  shows(["4.5.7"], () => {
    fc.assert(
      fc.property(
        fc.bigInt(0n, 2n ** 64n - 1n),
        fc.nat(Number.MAX_SAFE_INTEGER),
        (sector, size) => {
          for (const value of [sector, sector >> 11n, sector >> 32n, BigInt(size)]) {
            const number = sectorOf(Number(value & 0xffff_ffffn), Number(value >> 32n));
            if (value < 2n ** 53n) assert.equal(BigInt(number), value);
            else assert.ok(number > size && number * 512 + 4096 > size && !(number < size));
          }
          assert.equal(sectorOf(lowHalf(size), highHalf(size)), size);
        },
      ),
    );
  }),
);

test("the protocol key names an ABI or nothing", () => {
  for (const text of ["x86_64-abi", "x86_32-abi", "arm-abi"]) {
    assert.equal(parseBlkifProtocol(text), text);
  }
  for (const text of ["", "native", "x86_64", "ia64-abi", "x86_64-abi "]) {
    assert.equal(parseBlkifProtocol(text), undefined);
  }
  assert.equal(blkifLayout("arm-abi"), blkifLayout("x86_64-abi"));
  assert.equal(blkifLayout("native"), blkifLayout("x86_64-abi"));
});
