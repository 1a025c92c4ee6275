/**
 * Requests and responses of the block protocol, as <xen/io/blkif.h> and <xen/io/protocols.h> lay them out, in every
 * ABI: one codec, and for each way to align 64-bit fields a layout.
 *
 * Invariants. A word of shared memory is read at most once, and every decision is taken on the private copy of it (the
 * memory model of JavaScript forbids an engine to repeat a read). Decoding never fails: a hostile slot becomes values
 * out of range, which the reader of the request refuses. Encoding a response writes every one of its bytes, padding
 * included, so that nothing of ours leaks.
 *
 * All numbers are 32-bit words of a Uint32Array in the machine's order: Xen runs on little-endian machines alone. The
 * 64-bit fields stay two halves; nothing here needs BigInt.
 */
import { invariant } from "../util/assert.ts";

export const BLKIF_OP_READ = 0;
export const BLKIF_OP_WRITE = 1;
export const BLKIF_OP_WRITE_BARRIER = 2;
export const BLKIF_OP_FLUSH_DISKCACHE = 3;
/** Once a SCSI packet command of SLES; nobody serves it. */
export const BLKIF_OP_RESERVED_1 = 4;
export const BLKIF_OP_DISCARD = 5;
export const BLKIF_OP_INDIRECT = 6;

export const BLKIF_RSP_OKAY = 0;
export const BLKIF_RSP_ERROR = -1;
export const BLKIF_RSP_EOPNOTSUPP = -2;

/** Segments that fit into the slot itself. */
export const BLKIF_MAX_SEGMENTS_PER_REQUEST = 11;
export const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8;
/** Entries of 8 bytes in a page of 4096; the header gives this only as a formula in its text. */
export const BLKIF_SEGMENTS_PER_INDIRECT_PAGE = 512;
/** Bit of a discard's flag. */
export const BLKIF_DISCARD_SECURE = 1;

/** Bits of the `info` key. */
export const VDISK_CDROM = 1;
export const VDISK_REMOVABLE = 2;
export const VDISK_READONLY = 4;

export const XEN_IO_PROTO_ABI_X86_32 = "x86_32-abi";
export const XEN_IO_PROTO_ABI_X86_64 = "x86_64-abi";
export const XEN_IO_PROTO_ABI_ARM = "arm-abi";

/** Values of the `protocol` key; "native" is what a frontend on a machine like ours means. */
export type BlkifProtocol =
  | typeof XEN_IO_PROTO_ABI_X86_32
  | typeof XEN_IO_PROTO_ABI_X86_64
  | typeof XEN_IO_PROTO_ABI_ARM
  | "native";

/** What differs between ABIs: how 64-bit fields are aligned. All other offsets follow from it. */
export interface BlkifLayout {
  /** Bytes of a request, and so of a slot of the ring. */
  readonly requestSize: number;
  /** Bytes of a response, padding included. */
  readonly responseSize: number;
  /** Word of a request where its id lies; what follows it lies at the same distances in every ABI. */
  readonly body: number;
}

/** Here 64-bit fields are aligned to 4 bytes. */
const PACKED: BlkifLayout = { requestSize: 108, responseSize: 12, body: 1 };
/** Here they are aligned to 8 bytes: x86_64, and ARM of both widths. */
const ALIGNED: BlkifLayout = { requestSize: 112, responseSize: 16, body: 2 };

/** Words from the start of the body, in every ABI. Word 0 of the slot is `operation`, a byte and 16 bits. */
const ID = 0;
const SECTOR = 2;
/** seg[], nr_sectors of a discard, or the handle of an indirect request. */
const TAIL = 4;
const INDIRECT_REFERENCES = 5;

/** The layout that a `protocol` key names. What a missing key means is the caller's to know. */
export function blkifLayout(protocol: BlkifProtocol): BlkifLayout {
  invariant(new Uint8Array(Uint32Array.of(1).buffer)[0] === 1, "Xen needs a little-endian machine");
  if (protocol === "native") return process.arch === "ia32" ? PACKED : ALIGNED;
  return protocol === XEN_IO_PROTO_ABI_X86_32 ? PACKED : ALIGNED;
}

/** The text of a `protocol` key, or undefined when no such ABI exists. */
export function parseBlkifProtocol(text: string): BlkifProtocol | undefined {
  switch (text) {
    case XEN_IO_PROTO_ABI_X86_32:
    case XEN_IO_PROTO_ABI_X86_64:
    case XEN_IO_PROTO_ABI_ARM:
      return text;
    default:
      return undefined;
  }
}

/** A 64-bit sector (or count of sectors) from its halves: exact below 2^53, and Infinity from there on, which fails
 * every comparison with a size, also after a multiplication or an addition. */
export function sectorOf(low: number, high: number): number {
  return high < 0x20_0000 ? high * 0x1_0000_0000 + low : Number.POSITIVE_INFINITY;
}

/** Low half of an integer in 0...2^53-1. */
export function lowHalf(value: number): number {
  return value >>> 0;
}

/** High half of an integer in 0...2^53-1. */
export function highHalf(value: number): number {
  return Math.floor(value / 0x1_0000_0000);
}

/** Indirect pages that this many segments fill. */
export function indirectPageCount(segmentCount: number): number {
  return Math.ceil(segmentCount / BLKIF_SEGMENTS_PER_INDIRECT_PAGE);
}

/** Where data lies, as segments of pages, in parallel arrays. */
export interface BlkifSegments {
  readonly references: Uint32Array;
  /** Sectors of the page, inclusive, as sent: 0...255. */
  readonly firstSectors: Uint8Array;
  readonly lastSectors: Uint8Array;
}

/** A private copy of a request, reused. `segmentCount`, `handle` and the sector are 0 where the operation has none; the
 * fields of discards and of indirect requests, and the elements of arrays beyond the counts, are left over from earlier
 * requests. Nothing in it is validated. */
export class BlkifRequest implements BlkifSegments {
  operation = 0;
  /** As sent, 0...255: only the first BLKIF_MAX_SEGMENTS_PER_REQUEST are copied. */
  segmentCount = 0;
  /** Echo of the device number at best; some frontends send garbage. */
  handle = 0;
  /** Halves of the frontend's private value, echoed in the response. */
  idLow = 0;
  idHigh = 0;
  /** Halves of the first sector, see `sectorOf`. */
  sectorLow = 0;
  sectorHigh = 0;
  readonly references: Uint32Array = new Uint32Array(BLKIF_MAX_SEGMENTS_PER_REQUEST);
  readonly firstSectors: Uint8Array = new Uint8Array(BLKIF_MAX_SEGMENTS_PER_REQUEST);
  readonly lastSectors: Uint8Array = new Uint8Array(BLKIF_MAX_SEGMENTS_PER_REQUEST);
  discardFlag = 0;
  discardSectorsLow = 0;
  discardSectorsHigh = 0;
  /** What an indirect request does. */
  indirectOperation = 0;
  /** As sent, 0...65535. */
  indirectSegmentCount = 0;
  /** Grants of the pages that hold the segments; only as many as the count needs are copied. */
  readonly indirectReferences: Uint32Array = new Uint32Array(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
}

/** A private copy of a response, reused. */
export class BlkifResponse {
  idLow = 0;
  idHigh = 0;
  operation = 0;
  /** BLKIF_RSP_*, or any signed 16-bit value: all but BLKIF_RSP_OKAY are errors. */
  status = 0;
}

/** Copies the request whose slot begins at word `at`. An operation that nobody knows keeps its number and its id, which
 * is what a refusal needs. */
export function readRequest(
  layout: BlkifLayout,
  words: Uint32Array,
  at: number,
  into: BlkifRequest,
): void {
  const head = words[at]!;
  const body = at + layout.body;
  const operation = head & 0xff;
  into.operation = operation;
  into.idLow = words[body + ID]!;
  into.idHigh = words[body + ID + 1]!;
  if (operation > BLKIF_OP_FLUSH_DISKCACHE) {
    readRareRequest(words, head, body, into);
    return;
  }
  const count = (head >>> 8) & 0xff;
  into.segmentCount = count;
  into.handle = head >>> 16;
  into.sectorLow = words[body + SECTOR]!;
  into.sectorHigh = words[body + SECTOR + 1]!;
  readSegments(words, body + TAIL, into, 0, Math.min(count, BLKIF_MAX_SEGMENTS_PER_REQUEST));
}

function readRareRequest(words: Uint32Array, head: number, body: number, into: BlkifRequest): void {
  const known = into.operation === BLKIF_OP_DISCARD || into.operation === BLKIF_OP_INDIRECT;
  into.segmentCount = 0;
  into.sectorLow = known ? words[body + SECTOR]! : 0;
  into.sectorHigh = known ? words[body + SECTOR + 1]! : 0;
  into.handle = 0;
  if (into.operation === BLKIF_OP_DISCARD) {
    into.handle = head >>> 16;
    into.discardFlag = (head >>> 8) & 0xff;
    into.discardSectorsLow = words[body + TAIL]!;
    into.discardSectorsHigh = words[body + TAIL + 1]!;
  } else if (into.operation === BLKIF_OP_INDIRECT) {
    const count = head >>> 16;
    into.handle = words[body + TAIL]! & 0xffff;
    into.indirectOperation = (head >>> 8) & 0xff;
    into.indirectSegmentCount = count;
    const pages = Math.min(indirectPageCount(count), BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    const first = body + INDIRECT_REFERENCES;
    for (let i = 0; i < pages; i++) into.indirectReferences[i] = words[first + i]!;
  }
}

/** Writes the request into the slot that begins at word `at`: the fields that its operation carries. Counts beyond the
 * protocol's limits are written as they are, with as many segments or references as a slot holds. */
export function writeRequest(
  layout: BlkifLayout,
  words: Uint32Array,
  at: number,
  request: BlkifRequest,
): void {
  const operation = request.operation & 0xff;
  const body = at + layout.body;
  words[body + ID] = request.idLow;
  words[body + ID + 1] = request.idHigh;
  words[body + SECTOR] = request.sectorLow;
  words[body + SECTOR + 1] = request.sectorHigh;
  if (operation === BLKIF_OP_DISCARD) {
    words[at] = operation | ((request.discardFlag & 0xff) << 8) | (request.handle << 16);
    words[body + TAIL] = request.discardSectorsLow;
    words[body + TAIL + 1] = request.discardSectorsHigh;
  } else if (operation === BLKIF_OP_INDIRECT) {
    const count = request.indirectSegmentCount;
    words[at] = operation | ((request.indirectOperation & 0xff) << 8) | (count << 16);
    words[body + TAIL] = request.handle & 0xffff;
    const pages = Math.min(indirectPageCount(count), BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    const first = body + INDIRECT_REFERENCES;
    for (let i = 0; i < pages; i++) words[first + i] = request.indirectReferences[i]!;
  } else {
    const count = request.segmentCount;
    words[at] = operation | ((count & 0xff) << 8) | (request.handle << 16);
    const copied = Math.min(count, BLKIF_MAX_SEGMENTS_PER_REQUEST);
    writeSegments(words, body + TAIL, request, 0, copied);
  }
}

/** Copies the response whose slot begins at word `at`: its words are the same in every ABI. */
export function readResponse(words: Uint32Array, at: number, into: BlkifResponse): void {
  into.idLow = words[at]!;
  into.idHigh = words[at + 1]!;
  const tail = words[at + 2]!;
  into.operation = tail & 0xff;
  into.status = tail >> 16;
}

/** Writes all bytes of a response, its padding as zeroes (XSA-216). What follows it in the slot is the frontend's own
 * request. */
export function writeResponse(
  layout: BlkifLayout,
  words: Uint32Array,
  at: number,
  idLow: number,
  idHigh: number,
  operation: number,
  status: number,
): void {
  words[at] = idLow;
  words[at + 1] = idHigh;
  words[at + 2] = (operation & 0xff) | (status << 16);
  if (layout.responseSize === 16) words[at + 3] = 0;
}

/** Segments of indirect requests, reused. */
export class IndirectSegments implements BlkifSegments {
  readonly references: Uint32Array;
  readonly firstSectors: Uint8Array;
  readonly lastSectors: Uint8Array;

  /** `capacity` segments. */
  constructor(capacity: number) {
    this.references = new Uint32Array(capacity);
    this.firstSectors = new Uint8Array(capacity);
    this.lastSectors = new Uint8Array(capacity);
  }

  /** Copies entries 0...count-1 of an indirect page to segments `start` and following. `count` is at most
   * BLKIF_SEGMENTS_PER_INDIRECT_PAGE and what the capacity leaves. */
  read(page: Uint32Array, start: number, count: number): void {
    this.#check(start, count);
    readSegments(page, 0, this, start, count);
  }

  /** Writes segments `start` and following to entries 0...count-1 of an indirect page. */
  write(page: Uint32Array, start: number, count: number): void {
    this.#check(start, count);
    writeSegments(page, 0, this, start, count);
  }

  #check(start: number, count: number): void {
    invariant(
      count <= BLKIF_SEGMENTS_PER_INDIRECT_PAGE && start + count <= this.references.length,
      "indirect segments beyond the page or the capacity",
    );
  }
}

/** Copies `count` structs blkif_request_segment, which are the same in every ABI: a reference, then two bytes of
 * sectors and two of padding. */
export function readSegments(
  words: Uint32Array,
  at: number,
  into: BlkifSegments,
  start: number,
  count: number,
): void {
  const { references, firstSectors, lastSectors } = into;
  for (let i = start, word = at; i < start + count; i++, word += 2) {
    const sectors = words[word + 1]!;
    references[i] = words[word]!;
    firstSectors[i] = sectors;
    lastSectors[i] = sectors >>> 8;
  }
}

/** Writes `count` structs blkif_request_segment from segments `start` and following, at word `at`. */
export function writeSegments(
  words: Uint32Array,
  at: number,
  from: BlkifSegments,
  start: number,
  count: number,
): void {
  const { references, firstSectors, lastSectors } = from;
  for (let i = start, word = at; i < start + count; i++, word += 2) {
    words[word] = references[i]!;
    words[word + 1] = firstSectors[i]! | (lastSectors[i]! << 8);
  }
}
