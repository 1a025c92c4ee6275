/**
 * Metrics as Prometheus reads them (text exposition format 0.0.4), for its textfile collector or whoever serves them.
 *
 * Invariant: a family is one block with its HELP and TYPE, counters end in _total, and every text is escaped: a disk's
 * name may hold quotes and line ends.
 */
import {
  type DiskStatistics,
  type DomainStatistics,
  type RingStatistics,
  type ServerStatistics,
  statisticNames,
  type VbdStatistics,
} from "./statistics.ts";

export interface MetricFamily {
  /** Snake case, with its unit; `_total` at the end of a counter's. */
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge";
  readonly samples: readonly MetricSample[];
}

export interface MetricSample {
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
}

export function prometheusText(families: readonly MetricFamily[]): string {
  return families
    .filter((family) => family.samples.length > 0)
    .map(({ name, help, type, samples }) => {
      const lines = samples.map(({ labels, value }) => `${name}${labelText(labels)} ${value}\n`);
      return `# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n${lines.join("")}`;
    })
    .join("");
}

function labelText(labels: MetricSample["labels"]): string {
  const pairs = Object.entries(labels).map(
    ([name, value]) => `${name}="${escapeLabel(String(value))}"`,
  );
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

function escapeHelp(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"');
}

const statisticHelp: Readonly<Record<keyof VbdStatistics, string>> = {
  oo_req: "Times the ring had a request and the backend nothing to carry it out with.",
  rd_req: "Reads taken from the ring.",
  wr_req: "Writes taken from the ring.",
  f_req: "Flushes and barriers taken from the ring.",
  ds_req: "Discards taken from the ring.",
  rd_sect: "Sectors read, of 512 bytes.",
  wr_sect: "Sectors written, of 512 bytes.",
};

/** A family of which every subject has one sample. */
type Row<Subject> = readonly [
  name: string,
  type: MetricFamily["type"],
  help: string,
  value: (subject: Subject) => number,
];

const diskRows: readonly Row<DiskStatistics>[] = [
  [
    "frontend_merged_requests_total",
    "counter",
    "Requests that went along in the ring request of another.",
    (disk) => disk.frontend.merged,
  ],
  [
    "frontend_copied_bytes_total",
    "counter",
    "Bytes copied between callers' memory and granted pages.",
    (disk) => disk.frontend.copiedBytes,
  ],
  [
    "frontend_errors_total",
    "counter",
    "Responses that told the frontend of an error.",
    (disk) => disk.frontend.errors,
  ],
];

const ringRows: readonly Row<RingStatistics>[] = [
  ...statisticNames.map(
    (name): Row<RingStatistics> => [
      `${name}_total`,
      "counter",
      statisticHelp[name],
      (ring) => ring.statistics[name],
    ],
  ),
  ["requests_in_flight", "gauge", "Requests that the store carries out.", (ring) => ring.inFlight],
  [
    "store_errors_total",
    "counter",
    "Requests that the store could not carry out.",
    (ring) => ring.errors,
  ],
  [
    "grant_cache_mapped_pages",
    "gauge",
    "Pages of the guest that the backend has mapped.",
    (ring) => ring.grantCache.mapped,
  ],
  [
    "grant_cache_persistent_pages",
    "gauge",
    "Of the mapped pages, those that stay mapped between requests.",
    (ring) => ring.grantCache.persistent,
  ],
  [
    "grant_cache_purged_pages_total",
    "counter",
    "Kept pages that were given back because they were old or too many.",
    (ring) => ring.grantCache.purged,
  ],
];

const domainRows: readonly Row<DomainStatistics>[] = [
  ["grant_entries", "gauge", "Grant entries that give access.", (domain) => domain.granted],
  ["grant_mapped_pages", "gauge", "Foreign pages mapped.", (domain) => domain.mapped],
  ["grant_maps_total", "counter", "Grants mapped.", (domain) => domain.maps],
  ["grant_unmaps_total", "counter", "Grants unmapped.", (domain) => domain.unmaps],
  ["grant_copies_total", "counter", "Copies by the hypervisor.", (domain) => domain.copies],
  ["events_sent_total", "counter", "Events sent.", (domain) => domain.eventsSent],
  ["events_delivered_total", "counter", "Events delivered.", (domain) => domain.eventsDelivered],
];

/** A running server's statistics as metrics, labelled by guest, vdev, link and ring. */
export function metricsOf(server: ServerStatistics): MetricFamily[] {
  const disks = server.disks.map((disk) => {
    const labels = { guest: disk.guest, vdev: disk.vdev, link: disk.link };
    return { subject: disk, labels };
  });
  const rings = disks.flatMap(({ subject, labels }) =>
    subject.rings.map((ring, index) => ({ subject: ring, labels: { ...labels, ring: index } })),
  );
  const domains = server.domains.map((domain) => ({
    subject: domain,
    labels: { domain: domain.domain },
  }));
  return [
    family("build_info", "gauge", "Always 1; the label is the version.", [
      { labels: { version: server.version }, value: 1 },
    ]),
    family("uptime_seconds", "gauge", "Time since the server began.", [
      { labels: {}, value: server.uptimeSeconds },
    ]),
    family(
      "vbd_info",
      "gauge",
      "Always 1; the labels say what the disk is and whose.",
      disks.map(({ subject: { domain, disk }, labels }) => ({
        labels: { ...labels, domain, disk },
        value: 1,
      })),
    ),
    ...familiesOf(diskRows, disks),
    family(
      "frontend_waits_total",
      "counter",
      "Times a request of the frontend had to wait, by reason.",
      disks.flatMap(({ subject, labels }) => byName("reason", subject.frontend.waits, labels)),
    ),
    ...familiesOf(ringRows, rings),
    family(
      "broken_rules_total",
      "counter",
      "Requests that were refused, by the rule they broke.",
      rings.flatMap(({ subject, labels }) => byName("rule", subject.brokenRules, labels)),
    ),
    ...familiesOf(domainRows, domains),
  ];
}

function family(
  name: string,
  type: MetricFamily["type"],
  help: string,
  samples: readonly MetricSample[],
): MetricFamily {
  return { name: `vbdkit_${name}`, type, help, samples };
}

function familiesOf<Subject>(
  rows: readonly Row<Subject>[],
  subjects: readonly { readonly subject: Subject; readonly labels: MetricSample["labels"] }[],
): MetricFamily[] {
  return rows.map(([name, type, help, value]) =>
    family(
      name,
      type,
      help,
      subjects.map(({ subject, labels }) => ({ labels, value: value(subject) })),
    ),
  );
}

function byName(
  label: string,
  values: Readonly<Record<string, number>>,
  labels: MetricSample["labels"],
): MetricSample[] {
  return Object.entries(values).map(([name, value]) => ({
    labels: { ...labels, [label]: name },
    value,
  }));
}
