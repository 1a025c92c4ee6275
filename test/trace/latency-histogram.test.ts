import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { LatencyHistogram } from "../../src/trace/latency-histogram.ts";

function histogramOf(times: readonly number[]): LatencyHistogram {
  const histogram = new LatencyHistogram();
  for (const time of times) histogram.record(time);
  return histogram;
}

test("a histogram of nothing tells of nothing", () => {
  const histogram = new LatencyHistogram();
  assert.deepEqual(histogram.octaves(), []);
  assert.deepEqual(new Set(Object.values(histogram.summary)), new Set([0]));
});

test("requests stand in the power of two of microseconds that they took, and empty ones between are shown", () => {
  const histogram = histogramOf([0.3, 0.9, 5, 7.99, 8, 64]);
  const rows = histogram.octaves().map(({ from, to, requests }) => [from, to, requests]);
  assert.deepEqual(rows, [
    [0, 1, 2],
    [1, 2, 0],
    [2, 4, 0],
    [4, 8, 2],
    [8, 16, 1],
    [16, 32, 0],
    [32, 64, 0],
    [64, 128, 1],
  ]);
});

test("any percentile of any times is told at most a sixty-fourth too long, and never too short", () => {
  const time = fc.double({ min: 0, max: 2 ** 39, noNaN: true });
  const short = fc.double({ min: 0, max: 500, noNaN: true });
  fc.assert(
    fc.property(
      fc.array(fc.oneof(time, short), { minLength: 1 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (times, part) => {
        const sorted = times.toSorted((a, b) => a - b);
        const exact = sorted[Math.max(1, Math.ceil(part * times.length)) - 1]!;
        const told = histogramOf(times).percentile(part);
        assert.ok(told >= exact, `${told} is below ${exact}`);
        assert.ok(told <= exact * (1 + 1 / 64) + 1 / 64, `${told} is far above ${exact}`);
      },
    ),
  );
});

test("least, mean and most are exact, and forgotten when it is cleared", () => {
  const histogram = histogramOf([10.5, 20.5, 35]);
  const { least, mean, most } = histogram.summary;
  assert.deepEqual([least, mean, most, histogram.count], [10.5, 22, 35, 3]);
  histogram.clear();
  assert.deepEqual([histogram.count, histogram.summary.most], [0, 0]);
  histogram.record(2);
  assert.equal(histogram.summary.least, 2);
});

test("a time beyond all buckets is counted in the last one", () => {
  const histogram = histogramOf([2 ** 60, Number.MAX_VALUE]);
  assert.equal(histogram.count, 2);
  assert.equal(histogram.octaves().at(-1)!.requests, 2);
});
