/** A request of the peer in execution (blkback.c: struct pending_req): one pooled object per ring slot. */
import { SegmentList } from "../../io/memory.ts";
import { BlockRequest, type RequestOwner } from "../../store/block-store.ts";
import { BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../../wire/blkif.ts";
import type { DrainMember } from "./drain.ts";
import type { ValidRequest } from "./request.ts";
import { RequestPages, SECTOR_SIZE } from "./request-pages.ts";

export class PendingRequest {
  next: PendingRequest | undefined = undefined;
  /** Echoed in the response. */
  idLow = 0;
  idHigh = 0;
  /** Echoed in the response: the inner operation of an indirect request. */
  operation = 0;
  /** The data still to be written when the flush before it is done (flush and barrier that carry data). */
  writeAfterFlush = false;
  /** Bytes, of the data: the flush before it has none. */
  offset = 0;
  length = 0;
  /** The drain's: when it began, whether it changes the disk, and (of a flush) how many changes it waits for. */
  sequence = 0;
  changes = false;
  changesBefore = 0;
  /** The ring it came on. */
  readonly member: DrainMember;
  readonly request: BlockRequest;
  pages: RequestPages;
  segments: SegmentList;

  constructor(owner: RequestOwner & DrainMember, index: number) {
    this.member = owner;
    this.request = new BlockRequest(owner);
    this.request.tag = index;
    // Most requests are direct; the arrays of an indirect one are made when the first arrives in this slot.
    this.pages = new RequestPages(BLKIF_MAX_SEGMENTS_PER_REQUEST);
    this.segments = new SegmentList(BLKIF_MAX_SEGMENTS_PER_REQUEST);
  }

  /** Makes room for `count` segments. */
  reserve(count: number): void {
    if (count <= this.pages.capacity) return;
    this.pages = new RequestPages(count);
    this.segments = new SegmentList(count);
  }

  /** Lists the pages as memory of the block request. */
  gather(valid: ValidRequest): void {
    const list = this.segments;
    const { regions, starts } = this.pages;
    const { count, firstSectors, lastSectors } = valid;
    list.clear();
    for (let i = 0; i < count; i++) {
      const first = firstSectors[i]!;
      const length = (lastSectors[i]! - first + 1) * SECTOR_SIZE;
      list.add(regions[i]!, starts[i]! + first * SECTOR_SIZE, length);
    }
    this.request.segments = list;
    this.request.segmentByte = 0;
    this.offset = this.request.offset = valid.sector * SECTOR_SIZE;
    this.length = this.request.length = valid.sectorCount * SECTOR_SIZE;
    this.request.status = 0;
  }
}
