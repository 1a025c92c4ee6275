/**
 * Turns a piece of a caller's request, or a run of whole ones, into a slot of the ring, with its pages and grants
 * (FreeBSD's xbd_queue_cb and xbd_mksegarray, Linux's blkif_queue_rw_req), and takes the pages back when it was answered.
 *
 * Invariant: a page is granted for reading alone where the backend is to read it alone, unless it keeps its mappings;
 * for a backend that is not trusted no page shows anything but the request's data (XSA-403).
 */
import type { FrontRing } from "../../ring/front-ring.ts";
import { type BlockRequest, RequestFlag } from "../../store/block-store.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BlkifRequest,
  highHalf,
  IndirectSegments,
  lowHalf,
  writeSegments,
} from "../../wire/blkif.ts";
import { PAGE_SIZE } from "../../xen/domain.ts";
import type { ClientMemory } from "./client-memory.ts";
import { type Command, CommandState } from "./command.ts";
import { copyPages } from "./copy.ts";
import type { PagePool } from "./page-pool.ts";

/** What the connected backend lets us do; shared by all rings of a device. */
export interface QueueFeatures {
  /** Segments of one request, 11 without indirect ones. */
  readonly maxSegments: number;
  flush: boolean;
  barrier: boolean;
  /** The backend offered one of the two when it connected. With neither, what it answers is on the disk. */
  readonly flushPromised: boolean;
  discard: boolean;
  readonly discardSecure: boolean;
  /** Discarded bytes read as zero. */
  readonly discardZeroes: boolean;
  /** Bytes of a logical sector. */
  readonly sectorSize: number;
  /** Bytes that sector_number counts. */
  readonly numberUnit: number;
  /** Bytes that first_sect and last_sect count. */
  readonly segmentUnit: number;
  /** False: pages are cleared before they are shared. */
  readonly trusted: boolean;
}

export interface SlotWriterOptions {
  readonly ring: FrontRing;
  readonly pool: PagePool;
  /** Pages for the segments of indirect requests, which stay granted; where there are none, requests are direct. */
  readonly indirectPool: PagePool | undefined;
  /** Data that lies in it is not copied. Absent where pages are to be granted for one request alone. */
  readonly clientMemory: ClientMemory | undefined;
  readonly features: QueueFeatures;
  /** The vbd's number, for the handle field. */
  readonly vdev: number;
}

export type Shortage = "page shortage" | "grant shortage";

export class SlotWriter {
  readonly #ring: FrontRing;
  readonly #pool: PagePool;
  readonly #indirectPool: PagePool | undefined;
  readonly #clientMemory: ClientMemory | undefined;
  /** Of the pages of a command. */
  readonly #references: Uint32Array;
  readonly #features: QueueFeatures;
  readonly #handle: number;
  readonly #raw = new BlkifRequest();
  readonly #indirect: IndirectSegments;
  readonly #indirectWords: Uint32Array | undefined;
  #sequence = 0;

  constructor(options: SlotWriterOptions) {
    this.#ring = options.ring;
    this.#pool = options.pool;
    this.#indirectPool = options.indirectPool;
    this.#clientMemory = options.clientMemory;
    this.#references = new Uint32Array(options.features.maxSegments);
    this.#features = options.features;
    this.#handle = options.vdev & 0xffff;
    this.#indirect = new IndirectSegments(options.features.maxSegments);
    const region = options.indirectPool?.region.bytes;
    if (region !== undefined) {
      const { buffer, byteOffset, byteLength } = region;
      this.#indirectWords = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
    }
  }

  /** Bytes of the longest piece: whole sectors. */
  get maxPiece(): number {
    const segments =
      this.#indirectPool === undefined
        ? BLKIF_MAX_SEGMENTS_PER_REQUEST
        : this.#features.maxSegments;
    return this.#wholeSectors(segments);
  }

  /** Bytes of the longest piece that the free pages have room for. */
  get affordable(): number {
    const direct = (this.#indirectPool?.available ?? 0) === 0;
    const pages = this.#pool.available;
    return this.#wholeSectors(direct ? Math.min(pages, BLKIF_MAX_SEGMENTS_PER_REQUEST) : pages);
  }

  #wholeSectors(pages: number): number {
    const bytes = pages * PAGE_SIZE;
    return bytes - (bytes % this.#features.sectorSize);
  }

  /** `operation` (a read, write or barrier) on `length` bytes of the request from byte `byte` on, or on all of the run
   * that ends with `last`. Nothing has happened where something is short. */
  transfer(
    command: Command,
    request: BlockRequest,
    last: BlockRequest,
    operation: number,
    byte: number,
    length: number,
  ): Shortage | undefined {
    const pageCount = Math.ceil(length / PAGE_SIZE);
    command.indirect = pageCount > BLKIF_MAX_SEGMENTS_PER_REQUEST;
    command.copied = !this.#listClientPages(request, last, byte, length);
    if (!this.#takePages(command, pageCount)) return "page shortage";
    command.byte = byte;
    command.length = length;
    const readOnly = operation !== BLKIF_OP_READ;
    const granted = !command.copied || this.#grantPages(command, readOnly);
    if (!granted || !this.#fillSegments(command, operation)) {
      this.release(command);
      return "grant shortage";
    }
    command.request = request;
    command.last = last;
    if (command.copied) this.#fillPages(command, operation);
    this.#number((request.offset + byte) / this.#features.numberUnit);
    this.#raw.operation = command.indirect ? BLKIF_OP_INDIRECT : operation;
    this.#push(command, operation);
    return undefined;
  }

  /** A flush, or the empty barrier that does as one. */
  flush(command: Command, request: BlockRequest, operation: number): void {
    command.pageCount = 0;
    this.#raw.segmentCount = 0;
    this.#number(0);
    this.#raw.operation = operation;
    command.request = request;
    command.last = request;
    this.#push(command, operation);
  }

  discard(command: Command, request: BlockRequest): void {
    const raw = this.#raw;
    const count = request.length / this.#features.numberUnit;
    command.pageCount = 0;
    raw.operation = BLKIF_OP_DISCARD;
    raw.discardFlag = (request.flags & RequestFlag.secure) !== 0 ? BLKIF_DISCARD_SECURE : 0;
    this.#number(request.offset / this.#features.numberUnit);
    raw.discardSectorsLow = lowHalf(count);
    raw.discardSectorsHigh = highHalf(count);
    command.request = request;
    command.last = request;
    this.#push(command, raw.operation);
  }

  /** Copies what was read to the callers' memory, where it is not there already. */
  copyIn(command: Command): void {
    if (command.copied) this.#copy(false, command);
  }

  /** Gives the pages of a command back. */
  release(command: Command): void {
    if (command.pageCount === 0) return;
    if (command.copied) this.#pool.give(command.pages, command.pageCount);
    if (command.indirect) this.#indirectPool!.give(command.indirectPage, 1);
    command.pageCount = 0;
  }

  #number(sector: number): void {
    this.#raw.sectorLow = lowHalf(sector);
    this.#raw.sectorHigh = highHalf(sector);
  }

  #push(command: Command, operation: number): void {
    this.#raw.handle = this.#handle;
    this.#raw.idLow = command.id;
    this.#raw.idHigh = 0;
    command.state = CommandState.busy;
    command.sequence = this.#sequence++;
    command.operation = operation;
    this.#ring.push(this.#raw);
  }

  #takePages(command: Command, pageCount: number): boolean {
    if (command.indirect && !this.#indirectPool!.take(1, command.indirectPage)) return false;
    if (!command.copied || this.#pool.take(pageCount, command.pages)) {
      command.pageCount = pageCount;
      return true;
    }
    if (command.indirect) this.#indirectPool!.give(command.indirectPage, 1);
    return false;
  }

  /** Lists the references of a command's pages, where all its data lies in pages that the backend may have. */
  #listClientPages(
    request: BlockRequest,
    last: BlockRequest,
    byte: number,
    length: number,
  ): boolean {
    const memory = this.#clientMemory;
    if (memory === undefined) return false;
    let left = length;
    let count = 0;
    for (let part = request; ; part = part.next!) {
      const bytes = Math.min(part.length - byte, left);
      left -= bytes;
      if (left > 0 && bytes % PAGE_SIZE !== 0) return false;
      const from = part.segmentByte + byte;
      count = memory.list(part.segments!, from, bytes, this.#references, count);
      if (count < 0) return false;
      if (part === last) return true;
      byte = 0;
    }
  }

  /** Grants the pages of a command and lists their references; false when grants are short. */
  #grantPages({ pages, pageCount }: Command, readOnly: boolean): boolean {
    for (let i = 0; i < pageCount; i++) {
      const reference = this.#pool.reference(pages[i]!, readOnly);
      if (reference === 0) return false;
      this.#references[i] = reference;
    }
    return true;
  }

  /** Lists the pages of a command in the slot or in its indirect page; false when grants are short. */
  #fillSegments(command: Command, operation: number): boolean {
    const segments = command.indirect ? this.#indirect : this.#raw;
    const unit = this.#features.segmentUnit;
    const lastOfPage = PAGE_SIZE / unit - 1;
    const last = command.pageCount - 1;
    for (let i = 0; i <= last; i++) {
      segments.references[i] = this.#references[i]!;
      segments.firstSectors[i] = 0;
      segments.lastSectors[i] = lastOfPage;
    }
    const tail = command.length - last * PAGE_SIZE;
    segments.lastSectors[last] = tail / unit - 1;
    if (!command.indirect) {
      this.#raw.segmentCount = command.pageCount;
      return true;
    }
    const page = command.indirectPage[0]!;
    const reference = this.#indirectPool!.reference(page, true);
    if (reference === 0) return false;
    const word = this.#indirectPool!.start(page) / 4;
    writeSegments(this.#indirectWords!, word, this.#indirect, 0, command.pageCount);
    this.#raw.indirectOperation = operation;
    this.#raw.indirectSegmentCount = command.pageCount;
    this.#raw.indirectReferences[0] = reference;
    return true;
  }

  /** What the pool's pages are to hold before the backend sees them. */
  #fillPages(command: Command, operation: number): void {
    if (operation === BLKIF_OP_READ) {
      if (!this.#features.trusted) this.#clear(command, 0);
      return;
    }
    this.#copy(true, command);
    const tail = command.length % PAGE_SIZE;
    if (tail !== 0 && !this.#features.trusted) this.#clear(command, command.pageCount - 1, tail);
  }

  /** Zeroes the pages of a command from page `first`, byte `start` of it, on. */
  #clear(command: Command, first: number, start: number = 0): void {
    const bytes = this.#pool.region.bytes;
    for (let i = first; i < command.pageCount; i++) {
      const page = this.#pool.start(command.pages[i]!);
      bytes.fill(0, page + (i === first ? start : 0), page + PAGE_SIZE);
    }
  }

  /** The data of a run lies in the pages without gaps, as it does on the disk. */
  #copy(toPages: boolean, command: Command): void {
    const { last } = command;
    let { byte } = command;
    let done = 0;
    for (let request = command.request!; ; request = request.next!) {
      const length = Math.min(request.length - byte, command.length - done);
      copyPages(
        toPages,
        request.segments!,
        request.segmentByte + byte,
        this.#pool.region,
        this.#pool.start(0),
        command.pages,
        done,
        length,
      );
      if (request === last) return;
      done += length;
      byte = 0;
    }
  }
}
