/** `vbdkit stats`: a server's counters after known work, found with and without a name, and judged by promtool. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { shows } from "../../src/testing/index.ts";
import type { ServerStatistics } from "../../src/trace/statistics.ts";
import { unpacked } from "../support/debian.ts";
import {
  cleanEnvironment,
  type Served,
  serve,
  type TemporaryFolder,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

const io = (uri: string, ...commands: string[]) => {
  const words = commands.flatMap((command) => ["-c", command]);
  assert.equal(spawnSync("qemu-io", ["-f", "raw", ...words, uri]).status, 0);
};

describe("stats", { concurrency: 2 }, () => {
  let temporary: TemporaryFolder;
  let served: Served;
  // The servers of other tests are in another temporary folder.
  let env: NodeJS.ProcessEnv;
  before(async () => {
    temporary = await temporaryFolder();
    env = cleanEnvironment({ TMPDIR: temporary.path });
    served = await serve(["memory", "1M", "memory", "2M"], { env });
    const [first, second] = served.info.disks;
    io(first!.uri, "write 0 64k", "read 0 4k", "read 8k 4k", "flush", "discard 0 4k");
    io(second!.uri, "write 0 8k");
  });
  after(async () => {
    await served[Symbol.asyncDispose]();
    await temporary[Symbol.asyncDispose]();
  });
  const statistics = async (...words: string[]): Promise<ServerStatistics> =>
    JSON.parse((await vbdkit(["stats", "--json", ...words], { env })).stdout);

  test(
    "counts sectors and requests of each disk by Linux's names",
    shows(["4.9.1", "4.9.8"], async () => {
      const { disks } = await statistics();
      const [first, second] = disks;
      assert.equal(first!.vdev, "xvda");
      assert.equal(first!.statistics.wr_sect, 128);
      assert.equal(first!.statistics.rd_sect, 16);
      assert.equal(first!.statistics.rd_req, 2);
      assert.equal(first!.statistics.ds_req, 1);
      assert.ok(first!.statistics.f_req > 0);
      assert.equal(second!.statistics.wr_sect, 16);
      assert.equal(first!.inFlight, 0);
      assert.ok(first!.rings[0]!.grantCache.mapped > 0);
    }),
  );

  test("tells of a domain that several disks share once", async () => {
    const { domains } = await statistics();
    assert.deepEqual(
      domains.map(({ domain }) => domain),
      [0, 1],
    );
    assert.ok(domains[0]!.maps > 0);
  });

  test("finds the server by folder, URI, environment, and the only one without a name", async () => {
    const { directory, uri } = served.info;
    const { pid } = served.child;
    for (const words of [[directory], [uri], []])
      assert.equal((await statistics(...words)).pid, pid);
    const named = await vbdkit(["stats", "--json"], {
      env: cleanEnvironment({ VBDKIT_MACHINE: directory }),
    });
    assert.equal(JSON.parse(named.stdout).pid, pid);
  });

  test("prints a line for each ring to people", async () => {
    const { stdout } = await vbdkit(["stats"], { env });
    const [titles, first] = stdout.split("\n");
    assert.match(
      titles!,
      /^domain +vdev +ring +oo_req +rd_req +wr_req +f_req +ds_req +rd_sect +wr_sect /,
    );
    assert.match(first!, /^guest-1 +xvda +0 /);
    assert.equal(titles!.length, first!.length);
  });

  test(
    "gives Prometheus metrics that promtool finds nothing to say about",
    shows(["4.9.1"], async () => {
      const { stdout, code } = await vbdkit(["stats", "--prometheus"], { env });
      assert.equal(code, 0);
      assert.match(
        stdout,
        /^vbdkit_wr_sect_total\{guest="guest-1",vdev="xvda",link="thread",ring="0"\} 128$/m,
      );
      const prometheus = await unpacked("prometheus");
      const judged = spawnSync(prometheus.path("usr/bin/promtool"), ["check", "metrics"], {
        input: stdout,
        encoding: "utf8",
        env: prometheus.environment,
      });
      assert.equal(judged.stdout + judged.stderr, "");
      assert.equal(judged.status, 0);
    }),
  );

  test("takes one form of output", async () => {
    const { stderr, code } = await vbdkit(["stats", "--json", "--prometheus"], { env });
    assert.match(stderr, /^vbdkit: .*--prometheus.*cannot be used with.*--json/);
    assert.equal(code, 2);
  });

  test("asks which where several run, and says so where none does", async () => {
    await using empty = await temporaryFolder();
    const none = await vbdkit(["stats"], { env: cleanEnvironment({ TMPDIR: empty.path }) });
    assert.match(none.stderr, /^vbdkit: no server runs;/);
    assert.equal(none.code, 2);
    await using busy = await temporaryFolder();
    const environment = cleanEnvironment({ TMPDIR: busy.path });
    await using one = await serve(["memory", "1M"], { env: environment });
    await using two = await serve(["memory", "1M"], { env: environment });
    const several = await vbdkit(["stats"], { env: environment });
    for (const { info } of [one, two]) assert.ok(several.stderr.includes(info.directory));
    assert.equal(several.code, 2);
    const nowhere = await vbdkit(["stats", "/nowhere"], { env: environment });
    assert.equal(nowhere.stderr, "vbdkit: /nowhere: no server runs there\n");
  });
});
