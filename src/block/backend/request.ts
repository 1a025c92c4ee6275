/**
 * From a private copy of a ring slot to a request that may be executed, or to the name of the rule it breaks
 * (blkback.c: __do_block_io_op, dispatch_rw_block_io, xen_blkbk_parse_indirect, xen_vbd_translate).
 *
 * Invariant: nothing here looks at shared memory; what it reads was copied once.
 */
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  type BlkifRequest,
  type BlkifSegments,
  sectorOf,
} from "../../wire/blkif.ts";
import { MAX_INDIRECT_SEGMENTS } from "../features.ts";

/** Why a request is refused; the names are traced and counted. */
export const BrokenRule = {
  none: 0,
  unknownOperation: 1,
  segmentCount: 2,
  segmentSectors: 3,
  endOfDevice: 4,
  readOnly: 5,
  alignment: 6,
  indirectOperation: 7,
  grant: 8,
  discardRefused: 9,
} as const;
export type BrokenRule = (typeof BrokenRule)[keyof typeof BrokenRule];
export const brokenRuleNames: readonly string[] = Object.keys(BrokenRule);

/** What a request is checked against. */
export interface DeviceFacts {
  /** 512-byte sectors. */
  sectors: number;
  readOnly: boolean;
  /** 512-byte sectors of a logical block: requests start and end on it. */
  sectorsPerBlock: number;
  /** 512-byte sectors in one unit of sector_number and of a discard's length, in this frontend's dialect. */
  sectorUnit: number;
  /** 512-byte sectors in one unit of first_sect and last_sect: 1, or a whole block. */
  segmentUnit: number;
  /** The largest indirect request we offered; 0 for none. */
  maxIndirectSegments: number;
  discard: boolean;
  secureDiscard: boolean;
}

/** Sectors of a page, hence the bound of first_sect and last_sect. */
const SECTORS_PER_PAGE = 8;

/** A checked request. `count` segments lie in the private arrays; a flush may have none. */
export class ValidRequest implements BlkifSegments {
  /** Never INDIRECT: the inner operation. */
  operation = 0;
  indirect = false;
  secure = false;
  /** 512-byte sectors from the start of the device. */
  sector = 0;
  /** 512-byte sectors in all. */
  sectorCount = 0;
  count = 0;
  readonly references: Uint32Array = new Uint32Array(MAX_INDIRECT_SEGMENTS);
  readonly firstSectors: Uint8Array = new Uint8Array(MAX_INDIRECT_SEGMENTS);
  readonly lastSectors: Uint8Array = new Uint8Array(MAX_INDIRECT_SEGMENTS);
}

/** Everything that can be checked before indirect pages are looked at. Fills all but the segments of an indirect
 * request, whose count it has bounded. */
export function parseHead(
  request: BlkifRequest,
  facts: DeviceFacts,
  into: ValidRequest,
): BrokenRule {
  const indirect = request.operation === BLKIF_OP_INDIRECT;
  into.indirect = indirect;
  into.operation = indirect ? request.indirectOperation : request.operation;
  into.sector = sectorOf(request.sectorLow, request.sectorHigh) * facts.sectorUnit;
  into.sectorCount = 0;
  into.count = 0;
  switch (into.operation) {
    case BLKIF_OP_READ:
      break;
    case BLKIF_OP_WRITE:
    case BLKIF_OP_WRITE_BARRIER:
      // FreeBSD sends a barrier inside INDIRECT; it is carried out, where Linux refuses it.
      break;
    case BLKIF_OP_FLUSH_DISKCACHE:
      if (indirect) return BrokenRule.indirectOperation;
      break;
    case BLKIF_OP_DISCARD:
      return indirect ? BrokenRule.indirectOperation : parseDiscard(request, facts, into);
    default:
      return indirect ? BrokenRule.indirectOperation : BrokenRule.unknownOperation;
  }
  const count = indirect ? request.indirectSegmentCount : request.segmentCount;
  const maximum = indirect ? facts.maxIndirectSegments : BLKIF_MAX_SEGMENTS_PER_REQUEST;
  if (count > maximum) return BrokenRule.segmentCount;
  const isFlush =
    into.operation === BLKIF_OP_FLUSH_DISKCACHE || into.operation === BLKIF_OP_WRITE_BARRIER;
  if (count === 0 && (indirect || !isFlush)) return BrokenRule.segmentCount;
  into.count = count;
  if (count > 0 && facts.readOnly && into.operation !== BLKIF_OP_READ) return BrokenRule.readOnly;
  if (!indirect) {
    for (let i = 0; i < count; i++) {
      into.references[i] = request.references[i]!;
      into.firstSectors[i] = request.firstSectors[i]!;
      into.lastSectors[i] = request.lastSectors[i]!;
    }
  }
  return BrokenRule.none;
}

function parseDiscard(request: BlkifRequest, facts: DeviceFacts, into: ValidRequest): BrokenRule {
  if (!facts.discard) return BrokenRule.discardRefused;
  if (facts.readOnly) return BrokenRule.readOnly;
  into.secure = (request.discardFlag & BLKIF_DISCARD_SECURE) !== 0;
  if (into.secure && !facts.secureDiscard) return BrokenRule.discardRefused;
  into.sectorCount =
    sectorOf(request.discardSectorsLow, request.discardSectorsHigh) * facts.sectorUnit;
  if (into.sector + into.sectorCount > facts.sectors) return BrokenRule.endOfDevice;
  if (into.sector % facts.sectorsPerBlock !== 0 || into.sectorCount % facts.sectorsPerBlock !== 0) {
    return BrokenRule.alignment;
  }
  return BrokenRule.none;
}

/** Checks the segments that are in `into`, and where they lie on the device. From then on they count in 512 bytes, as
 * everything of ours does. */
export function parseSegments(facts: DeviceFacts, into: ValidRequest): BrokenRule {
  const unit = facts.segmentUnit;
  let sectors = 0;
  for (let i = 0; i < into.count; i++) {
    const first = into.firstSectors[i]!;
    const last = into.lastSectors[i]!;
    if ((last + 1) * unit > SECTORS_PER_PAGE || last < first) return BrokenRule.segmentSectors;
    into.firstSectors[i] = first * unit;
    into.lastSectors[i] = (last + 1) * unit - 1;
    const length = (last - first + 1) * unit;
    // Linux looks at each segment, not only at the sum: an odd piece in the middle would split a block.
    if (length % facts.sectorsPerBlock !== 0) return BrokenRule.alignment;
    sectors += length;
  }
  into.sectorCount = sectors;
  if (into.count === 0) return BrokenRule.none;
  if (into.sector + sectors > facts.sectors) return BrokenRule.endOfDevice;
  if (into.sector % facts.sectorsPerBlock !== 0) return BrokenRule.alignment;
  return BrokenRule.none;
}
