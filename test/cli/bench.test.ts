/** `vbdkit bench`: it measures what it says it does, and destroys nothing unasked. How fast anything was is nobody's
 * business here. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { BenchResult } from "../../src/cli/bench-disk.ts";
import { CommandRunner } from "../support/command-runner.ts";
import { cleanEnvironment, finished, serve, start, temporaryFolder } from "../support/vbdkit.ts";

const terminal = join(import.meta.dirname, "../support/terminal.py");
const program = join(import.meta.dirname, "../../bin/vbdkit.js");
/** As short as it can be and still have requests in it. */
const brief = ["--runtime", "100ms", "--ramp-time", "10ms"];

const runner = new CommandRunner();
after(() => runner[Symbol.asyncDispose]());
const vbdkit = (words: readonly string[]) => runner.run(words, tmpdir());

async function bench(...words: string[]): Promise<BenchResult> {
  const { stdout, stderr, code } = await vbdkit(["bench", "--json", ...brief, ...words]);
  assert.deepEqual([stderr, code], ["", 0]);
  return JSON.parse(stdout);
}

describe("bench", { concurrency: 2 }, () => {
  test("random reads through a ring are measured, and each is counted once", async () => {
    const { reads, writes, ring, workload, processor, stopped } = await bench("memory", "8M");
    assert.equal(writes, undefined);
    assert.equal(workload.rw, "randread");
    assert.deepEqual(
      [workload.blockBytes, workload.depth, workload.bytes],
      [4096, 32, 8 * 2 ** 20],
    );
    assert.ok(reads !== undefined && reads.requests > 0);
    const counted = reads.histogramMicroseconds.reduce((sum, { requests }) => sum + requests, 0);
    assert.equal(counted, reads.requests);
    const { least, mean, p50, p99, p999, most } = reads.latencyMicroseconds;
    assert.ok(least > 0 && least <= p50 && p50 <= p99 && p99 <= p999 && p999 <= most);
    assert.ok(least <= mean && mean <= most);
    assert.ok(Math.abs(reads.bytesPerSecond - reads.iops * 4096) < 1);
    assert.ok(ring !== undefined && ring.commandsPerRequest > 0 && ring.eventsPerRequest > 0);
    assert.equal(ring.link, "thread");
    assert.ok(processor.microsecondsPerRequest > 0);
    assert.equal(stopped, false);
  });

  test("without a ring the disk itself is measured", async () => {
    const { reads, ring } = await bench("--no-ring", "memory", "8M");
    assert.equal(ring, undefined);
    assert.ok(reads!.requests > 0);
  });

  test("the backend may be in a worker, and small reads side by side are joined", async () => {
    const words = ["--link", "worker", "--rw", "read", "--iodepth", "16", "memory", "8M"];
    const { ring, reads } = await bench(...words);
    assert.equal(ring!.link, "worker");
    assert.ok(reads!.requests > 0);
    assert.ok(ring!.commandsPerRequest < 1, String(ring!.commandsPerRequest));
  });

  test("a disk of a server is measured over NBD", async () => {
    await using served = await serve(["memory", "4M"]);
    const { reads } = await bench("--no-ring", served.info.uri);
    assert.ok(reads!.requests > 0);
  });

  test("an image is read, and not one byte of it is changed", async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("a.img");
    const data = Buffer.from(Array.from({ length: 2 ** 20 }, (_, i) => (i * 7919) >>> 5));
    await writeFile(image, data);
    const { size, reads } = await bench(image);
    assert.equal(size, 2 ** 20);
    assert.ok(reads!.requests > 0);
    assert.ok(readFileSync(image).equals(data));
  });

  test("writing is refused until --destroy-data allows it, and stays within --size", async () => {
    await using folder = await temporaryFolder();
    const image = folder.file("a.img");
    await writeFile(image, Buffer.alloc(2 ** 20));
    const refused = await vbdkit(["bench", ...brief, "--rw", "randwrite", image]);
    assert.match(
      refused.stderr,
      /^vbdkit: --rw randwrite overwrites the disk.*--destroy-data.*\n$/,
    );
    assert.equal(refused.code, 2);
    assert.ok(readFileSync(image).equals(Buffer.alloc(2 ** 20)));
    const words = ["--rw", "write", "--destroy-data", "--size", "64K", "--bs", "8K", image];
    const { writes, reads, workload } = await bench(...words);
    assert.equal(reads, undefined);
    assert.equal(workload.bytes, 65536);
    assert.ok(writes!.requests > 0);
    const written = readFileSync(image);
    assert.ok(!written.subarray(0, 65536).equals(Buffer.alloc(65536)));
    assert.ok(written.subarray(65536).equals(Buffer.alloc(2 ** 20 - 65536)));
  });

  test("a mixed load reads and writes, and no more than it was told to", async () => {
    const words = ["--rw", "randrw", "--destroy-data", "memory", "8M"];
    const { reads, writes } = await bench(...words);
    assert.ok(reads!.requests > 0 && writes!.requests > 0);
    const all = await bench("--rwmixread", "100", ...words);
    assert.ok(all.reads!.requests > 0);
    assert.equal(all.writes, undefined);
    const none = await bench("--rwmixread", "0", ...words);
    assert.equal(none.reads, undefined);
    assert.ok(none.writes!.requests > 0);
  });

  test("requests longer than the disk takes at once are cut", async () => {
    const words = ["--bs", "16M", "--iodepth", "2", "--rw", "read", "memory", "32M"];
    assert.ok((await bench(...words)).reads!.requests > 0);
  });

  test("a person gets a table and a picture that fits the page", async () => {
    const { stdout, code } = await vbdkit(["bench", ...brief, "memory", "8M"]);
    assert.equal(code, 0);
    assert.match(
      stdout,
      /^memory 8M {2}8 MiB\n {2}load +random reads of 4 KiB, 32 in flight, for /,
    );
    assert.match(stdout, /^ +IOPS +MiB\/s +mean +p50 +p95 +p99 +p99\.9 +max$/m);
    assert.match(stdout, /^read +[\d,]+ +[\d.]+ +[\d.]+ [µm]?s /m);
    assert.match(stdout, /^ {2}processor +[\d.]+ [µm]?s for a request, \d+ % of a core$/m);
    assert.match(stdout, /^ {2}< +[\d.]+ [µm]?s +[\d,]+ +[\d.]+ % {2}█+/m);
    for (const line of stdout.split("\n")) assert.ok(line.length <= 100, line);
  });

  test("a request that fails ends it with what failed where", async () => {
    const words = ["--filter", "error", "memory", "1M", "error-rate=100%", "error=ENOSPC"];
    for (const way of [[], ["--no-ring"]]) {
      const { stdout, stderr, code } = await vbdkit(["bench", ...way, ...brief, ...words]);
      assert.match(stderr, /^vbdkit: reading at \d+ failed: E[A-Z]+\n$/);
      assert.deepEqual([stdout, code], ["", 1]);
    }
  });

  test("what cannot be measured is refused in a line", async () => {
    const cases: [string[], RegExp][] = [
      [[], /needs a disk/],
      [["--bs", "1000", "memory", "1M"], /--bs: .* blocks of 512 bytes/],
      [["--bs", "2M", "memory", "1M"], /--bs: .* 1 MiB .* less than one request/],
      [["--size", "2M", "memory", "1M"], /--size: memory 1M has 1 MiB/],
      [["--rwmixread", "50", "memory", "1M"], /--rwmixread is of/],
      [["--bs", "1G", "--iodepth", "2", "memory", "1M"], /more than 1 GiB/],
      [["--runtime", "0", "memory", "1M"], /--runtime: /],
      [["--runtime", "soon", "memory", "1M"], /--runtime.*not a time/],
      [["--no-ring", "--link", "worker", "memory", "1M"], /--no-ring.*--link/],
      [["--rw", "randread", "memroy", "1M"], /did you mean "memory"/],
    ];
    for (const [words, message] of cases) {
      const { stdout, stderr, code } = await vbdkit(["bench", ...words]);
      assert.match(stderr, /^vbdkit: .*\n$/);
      assert.match(stderr, message);
      assert.deepEqual([stdout, code], ["", 2], words.join(" "));
    }
  });

  test("a Ctrl-C shows what was measured until then, after a line that said how far it was", () => {
    const command = [program, "bench", "--runtime", "1m", "--ramp-time", "0", "memory", "8M"];
    const words = [terminal, "IOPS", process.execPath, ...command];
    const env = cleanEnvironment({ TERM: "xterm" });
    const { stdout, status } = spawnSync("python3", words, { encoding: "utf8", env });
    assert.equal(status, 130, stdout);
    assert.match(stdout, /\d+% \[#* *\] [\d.]+ s of 60 s {2}[\d,]+ IOPS {2}[\d.]+ [KMG]?i?B\/s/);
    assert.match(stdout, /for [\d.]+ m?s, until it was stopped/);
    assert.match(stdout, /read +[\d,]+ /);
    assert.match(stdout, /vbdkit: stopped: SIGINT/);
  });

  test("of a disk that answers nothing that is shown, too, and a second signal leaves nothing behind", async () => {
    await using folder = await temporaryFolder();
    const log = folder.file("log");
    const filters = ["--filter", "log", "--filter", "delay"];
    const words = [...filters, "memory", "1M", "rdelay=10m", `logfile=${log}`];
    const env = cleanEnvironment({ TMPDIR: folder.path });
    const child = start(["bench", "--ramp-time", "0", ...words], { env });
    const outcome = finished(child);
    let shown = "";
    child.stdout!.on("data", (text: string) => {
      shown += text;
    });
    let told = "";
    child.stderr!.on("data", (text: string) => {
      told += text;
    });
    const until = async (fine: () => boolean) => {
      for (let tries = 0; !fine() && tries < 600; tries++) await sleep(50);
      assert.ok(fine(), shown + told);
    };
    await until(() => existsSync(log) && readFileSync(log, "utf8").includes("Read "));
    child.kill("SIGINT");
    await until(() => shown.includes("until it was stopped"));
    await until(() => told.includes("waiting for 32 requests"));
    child.kill("SIGINT");
    assert.equal((await outcome).code, 130);
    assert.deepEqual(readdirSync(folder.path), ["log"]);
  });
});
