/**
 * How the frontends of twenty years speak, as data: what a backend meets when such a guest boots. Taken from the
 * behaviour of the drivers named; where several versions differ, the one that asks most of a backend.
 */
import type { BlkifProtocol } from "../wire/blkif.ts";

export interface FrontendDialect {
  /** Of the driver, as it stands in the names of tests. */
  readonly name: string;
  /** Rows of the feature table that it brings. */
  readonly rows: readonly string[];
  /** null: it writes no such key, and means x86_32. */
  readonly protocol: BlkifProtocol | null;
  /** It waits for InitWait before it writes its keys. */
  readonly waits: boolean;
  /** The state it writes with its keys. */
  readonly state: 3 | 4;
  /** The largest ring it asks for. */
  readonly ringOrder: number;
  readonly ringKeys: "ring-page-order" | "num-ring-pages" | "both";
  /** Rings it asks for, where several are offered. */
  readonly queues: number;
  readonly persistent: boolean;
  /** Segments of its largest request; beyond 11 with indirect requests, where they are offered. */
  readonly maxSegments: number;
  /** Indirect requests come only if at least as many segments are offered. */
  readonly leastIndirect: number;
  readonly allIndirectReferences: boolean;
  /** What it puts into the handle field. */
  readonly handle: number;
  /** How it makes data durable, where that is offered. */
  readonly ordered: "flush" | "barrier" | "indirect barrier" | "none";
  readonly discards: boolean;
  /** It closes by way of Closing, or at once. */
  readonly goodbye: "closing" | "closed";
  /** It asks for no events, and looks at the ring over and over. */
  readonly polls: boolean;
  /** Other keys it writes. */
  readonly keys: Readonly<Record<string, string>>;
}

const plain = {
  rows: [],
  protocol: "x86_64-abi",
  waits: true,
  state: 3,
  ringOrder: 0,
  ringKeys: "ring-page-order",
  queues: 1,
  persistent: false,
  maxSegments: 11,
  leastIndirect: 12,
  allIndirectReferences: false,
  handle: 51712,
  ordered: "none",
  discards: false,
  goodbye: "closing",
  polls: false,
  keys: {},
} as const satisfies Partial<FrontendDialect>;

export const frontendDialects: readonly FrontendDialect[] = [
  {
    ...plain,
    name: "Linux 2.6.23 blkfront",
    rows: ["2.2", "2.4", "2.9", "1.3", "1.12"],
    // No key and no waiting: a guest of 32 bits, on a ring of 32-bit layout.
    protocol: null,
    waits: false,
    ordered: "barrier",
  },
  {
    ...plain,
    name: "Linux blkfront of today",
    rows: ["1.1", "1.2", "1.4", "1.7", "1.9", "2.3", "2.6", "2.10", "4.1.1", "4.2.2"],
    ringOrder: 4,
    queues: 4,
    persistent: true,
    maxSegments: 32,
    ordered: "flush",
    discards: true,
  },
  {
    ...plain,
    name: "Linux blkfront that trusts no backend",
    rows: ["4.10.8", "4.2.2"],
    maxSegments: 32,
    ordered: "flush",
    discards: true,
    keys: { "feature-persistent": "0" },
  },
  {
    ...plain,
    name: "FreeBSD blkfront",
    rows: ["2.6", "2.7", "4.2.3", "4.2.4"],
    ringOrder: 2,
    ringKeys: "both",
    maxSegments: 32,
    allIndirectReferences: true,
    // The low half of a kernel address.
    handle: 0xb9c0,
    ordered: "indirect barrier",
  },
  {
    ...plain,
    name: "an old frontend with num-ring-pages alone",
    rows: ["2.7"],
    ringOrder: 1,
    ringKeys: "num-ring-pages",
  },
  {
    ...plain,
    name: "NetBSD xbd",
    rows: ["1.4", "2.9"],
    waits: false,
    maxSegments: 32,
    leastIndirect: 17,
    ordered: "flush",
  },
  {
    ...plain,
    name: "Mini-OS blkfront",
    rows: ["2.9", "1.3"],
    state: 4,
    ordered: "barrier",
  },
  {
    ...plain,
    name: "OVMF XenPvBlkDxe",
    rows: ["2.17", "1.4"],
    state: 4,
    ordered: "flush",
    polls: true,
    goodbye: "closed",
  },
  {
    ...plain,
    name: "MirageOS mirage-block-xen",
    rows: ["2.3", "4.2.3"],
    state: 4,
    maxSegments: 32,
  },
  {
    ...plain,
    name: "GRUB xendisk",
    rows: ["2.17", "4.10.2"],
    maxSegments: 1,
    polls: true,
    goodbye: "closed",
  },
  {
    ...plain,
    name: "Windows xenvbd",
    rows: ["1.4", "1.7", "2.6", "2.10", "3.2.windows", "3.2.feature-large-sector-size"],
    ringOrder: 4,
    queues: 2,
    maxSegments: 32,
    ordered: "flush",
    discards: true,
    keys: {
      "feature-large-sector-size": "1",
      "feature-surprise-remove": "1",
      "feature-online-resize": "1",
      "target-id": "0",
    },
  },
];
