/** Prometheus's text format: what it must escape, and Debian's promtool as the judge of the rest. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { type MetricFamily, metricsOf, prometheusText } from "../../src/trace/prometheus.ts";
import { type ServerStatistics, sumStatistics } from "../../src/trace/statistics.ts";
import { unpacked } from "../support/debian.ts";

const ring = (base: number) => ({
  statistics: {
    oo_req: base,
    rd_req: base + 1,
    wr_req: base + 2,
    f_req: base + 3,
    ds_req: base + 4,
    rd_sect: base + 5,
    wr_sect: base + 6,
  },
  inFlight: 2,
  errors: 1,
  brokenRules: base === 0 ? {} : { endOfDevice: 7 },
  grantCache: { mapped: 40, persistent: 32, purged: 5 },
});
const rings = [ring(0), ring(100)];
const server: ServerStatistics = {
  version: "1.2.3",
  pid: 1,
  uptimeSeconds: 12.5,
  disks: [
    {
      vdev: "xvda",
      disk: 'memory "1G"\\\nsecond line',
      link: "thread",
      domain: 1,
      guest: "web",
      statistics: sumStatistics(rings.map(({ statistics }) => statistics)),
      inFlight: 4,
      rings,
      frontend: { waits: { "page shortage": 3 }, merged: 5, copiedBytes: 4096, errors: 0 },
    },
  ],
  domains: [
    {
      ...{ domain: 0, granted: 0, mapped: 72, maps: 80, unmaps: 8, copies: 0 },
      ...{ eventsSent: 5, eventsDelivered: 6 },
    },
  ],
};

test("a family is HELP, TYPE and its samples, with labels in quotes", () => {
  const family: MetricFamily = {
    name: "a_total",
    help: "One\\two\nthree.",
    type: "counter",
    samples: [
      { labels: {}, value: 1 },
      { labels: { name: 'a"b\\c\nd', ring: 0 }, value: 2.5 },
    ],
  };
  assert.equal(
    prometheusText([family]),
    "# HELP a_total One\\\\two\\nthree.\n# TYPE a_total counter\n" +
      'a_total 1\na_total{name="a\\"b\\\\c\\nd",ring="0"} 2.5\n',
  );
});

test("a family without samples is left out", () => {
  assert.equal(prometheusText([{ name: "a", help: "b", type: "gauge", samples: [] }]), "");
});

test("every ring has a sample of its own, labelled by vdev, link and ring", () => {
  const text = prometheusText(metricsOf(server));
  assert.match(text, /^vbdkit_rd_req_total\{guest="web",vdev="xvda",link="thread",ring="0"\} 1$/m);
  assert.match(
    text,
    /^vbdkit_frontend_merged_requests_total\{guest="web",vdev="xvda",link="thread"\} 5$/m,
  );
  assert.match(
    text,
    /^vbdkit_rd_req_total\{guest="web",vdev="xvda",link="thread",ring="1"\} 101$/m,
  );
  assert.match(
    text,
    /^vbdkit_broken_rules_total\{guest="web",vdev="xvda",link="thread",ring="1",rule="endOfDevice"\} 7$/m,
  );
});

test("a disk's statistics are the sums of its rings", () => {
  assert.equal(server.disks[0]!.statistics.wr_sect, 112);
});

test("promtool finds nothing to say about the metrics", async () => {
  const prometheus = await unpacked("prometheus");
  const { status, stdout, stderr } = spawnSync(
    prometheus.path("usr/bin/promtool"),
    ["check", "metrics"],
    { input: prometheusText(metricsOf(server)), encoding: "utf8", env: prometheus.environment },
  );
  assert.equal(stdout + stderr, "");
  assert.equal(status, 0);
});
