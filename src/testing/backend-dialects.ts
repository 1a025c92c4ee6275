/** How the backends of twenty years speak, as data: what a frontend meets when its guest boots on such a host. */

export interface BackendDialect {
  /** Of the driver, as it stands in the names of tests. */
  readonly name: string;
  /** Rows of the feature table that it brings. */
  readonly rows: readonly string[];
  /** Keys before InitWait. */
  readonly early: Readonly<Record<string, string>>;
  /** Keys with Connected; the disk's own are added where neither list has them. */
  readonly late: Readonly<Record<string, string>>;
  /** The disk's own keys (sectors, sector-size, info) come before InitWait. */
  readonly sizeEarly: boolean;
  /** The state it offers its keys with: InitWait, or Initialised where there is nothing to negotiate. */
  readonly offers: 2 | 3;
  /** Status of a request that fails. */
  readonly errorStatus: number;
  /** Operations that it answers with EOPNOTSUPP though it offered them, and takes back the offer. */
  readonly takesBack: readonly number[];
  /** It announces a new size, and keeps serving. */
  readonly resizes: boolean;
  /** What it expects of a ring; one it does not offer is a mistake of the frontend. */
  readonly maxRingOrder: number;
  readonly maxQueues: number;
  readonly maxSegments: number;
}

const plain = {
  rows: [],
  early: {},
  late: {},
  sizeEarly: false,
  offers: 2,
  errorStatus: -1,
  takesBack: [],
  resizes: false,
  maxRingOrder: 0,
  maxQueues: 1,
  maxSegments: 11,
} as const satisfies Partial<BackendDialect>;

/** struct blkif_request.operation */
const BARRIER = 2;
const FLUSH = 3;

export const backendDialects: readonly BackendDialect[] = [
  {
    ...plain,
    name: "an old backend with no features",
    rows: ["1.1", "1.2", "1.12", "2.9"],
  },
  {
    ...plain,
    name: "Linux xen-blkback of today",
    rows: [
      "1.4",
      "1.7",
      "1.9",
      "2.6",
      "2.10",
      "4.1.1",
      "4.2.2",
      "4.3.2",
      "4.3.3",
      "4.4.1",
      "4.6.1",
    ],
    early: {
      "max-ring-page-order": "4",
      "multi-queue-max-queues": "4",
      "feature-max-indirect-segments": "256",
    },
    late: {
      "feature-barrier": "1",
      "feature-flush-cache": "1",
      "feature-discard": "1",
      "discard-granularity": "4096",
      "discard-alignment": "0",
      "discard-secure": "0",
      "feature-persistent": "1",
      "physical-sector-size": "4096",
    },
    resizes: true,
    maxRingOrder: 4,
    maxQueues: 4,
    maxSegments: 256,
  },
  {
    ...plain,
    name: "Linux blkback on a disk that knows neither barrier nor flush",
    rows: ["4.3.6"],
    late: { "feature-barrier": "1", "feature-flush-cache": "1" },
    takesBack: [BARRIER, FLUSH],
  },
  {
    ...plain,
    name: "a backend of 2007 with barriers alone",
    rows: ["1.3", "4.3.1"],
    late: { "feature-barrier": "1" },
  },
  {
    ...plain,
    name: "QEMU xen-block",
    rows: ["1.4", "1.7", "2.6", "4.6.1"],
    early: {
      "max-ring-page-order": "4",
      "feature-flush-cache": "1",
      "feature-discard": "1",
      "discard-granularity": "512",
    },
    sizeEarly: true,
    resizes: true,
    maxRingOrder: 4,
  },
  {
    ...plain,
    name: "FreeBSD xbb",
    rows: ["1.3", "2.6"],
    early: { "max-ring-page-order": "5" },
    late: { "feature-barrier": "1", "feature-flush-cache": "1" },
    maxRingOrder: 4,
  },
  {
    ...plain,
    name: "a backend of the old scheme, with max-ring-pages",
    rows: ["2.7"],
    early: { "max-ring-pages": "4" },
    maxRingOrder: 2,
  },
  {
    ...plain,
    name: "NetBSD xbdback of 2018",
    rows: ["1.11", "4.2.1"],
    late: { "feature-flush-cache": "1", "feature-max-indirect-segments": "16" },
    // It announces indirect requests after a frontend has had to decide; direct ones it takes in any case.
    errorStatus: -5,
    maxSegments: 16,
  },
  {
    ...plain,
    name: "XenServer tapback",
    rows: ["1.3", "2.6", "2.17"],
    early: { "max-ring-page-order": "2", "feature-persistent": "0" },
    late: { "feature-barrier": "1", "polling-duration": "1000", "polling-idle-threshold": "50" },
    maxRingOrder: 2,
  },
  {
    ...plain,
    name: "MirageOS, which goes straight to Initialised",
    rows: ["4.2.1"],
    early: { "feature-max-indirect-segments": "256" },
    offers: 3,
    maxSegments: 256,
  },
];
