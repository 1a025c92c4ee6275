/** The parameters of both ends by Linux's names: each reaches its end, has its place in the docs, and mistakes are told. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { backendParameters } from "../../src/block/backend/parameters.ts";
import { frontendParameters } from "../../src/block/frontend/parameters.ts";
import { backendKnobs, frontendKnobs, knobHelp } from "../../src/cli/knobs.ts";
import { cleanEnvironment, serve, temporaryFolder, vbdkit } from "../support/vbdkit.ts";

const silent = (message: string) => assert.fail(message);

test("a switch takes what the kernel takes for a bool", () => {
  for (const text of ["1", "y", "Y", "on", "true"]) {
    assert.deepEqual(backendKnobs([`feature_persistent=${text}`], silent), { persistent: true });
  }
  for (const text of ["0", "n", "N", "off", "false"]) {
    assert.deepEqual(frontendKnobs([`trusted=${text}`], silent), { trusted: false });
  }
});

test("a number out of its range is brought into it, and a person is told", () => {
  const notes: string[] = [];
  const words = ["max_queues=99", "max_ring_page_order=-1", "max_buffer_pages=7"];
  assert.deepEqual(
    backendKnobs(words, (message) => notes.push(message)),
    { maxQueues: 64, maxRingPageOrder: 0, maxBufferPages: 7 },
  );
  assert.deepEqual(notes, [
    "--backend max_queues=99 is not a number from 0 to 64: taken as 64",
    "--backend max_ring_page_order=-1 is not a number from 0 to 4: taken as 0",
  ]);
});

test("what is no parameter or no value is refused with what to write instead", () => {
  const cases: [string, RegExp][] = [
    ["max_quues=1", /no parameter "max_quues"; did you mean "max_queues"/],
    ["max_queues", /write NAME=VALUE/],
    ["max_queues=", /write a number from 0 to 64/],
    ["log_stats=maybe", /write 0 or 1/],
    ["sector_size=1024", /write 512 or 4096/],
  ];
  for (const [word, expected] of cases) {
    assert.throws(() => backendKnobs([word], silent), expected);
  }
});

test("every parameter is in --help and in docs/commands/serve.md, with its range", () => {
  const page = readFileSync(new URL("../../docs/commands/serve.md", import.meta.url), "utf8");
  const help = knobHelp();
  for (const { name } of [...backendParameters, ...frontendParameters]) {
    assert.ok(help.includes(`  ${name}=`), name);
    assert.ok(page.includes(`\`${name}\``), `docs/commands/serve.md does not tell of ${name}`);
  }
});

describe("serve", { concurrency: 2 }, () => {
  test("gives each end its parameters", async () => {
    const words = [
      ...["--frontend", "max_queues=2", "--frontend", "max_ring_page_order=1"],
      ...["--backend", "max_indirect_segments=16", "--backend", "feature_persistent=0"],
    ];
    await using served = await serve([...words, "memory", "1M"]);
    const { negotiated, backend } = served.info.disks[0]!.attachment;
    assert.equal(negotiated.queues, 2);
    assert.equal(backend.rings.length, 2);
    assert.equal(negotiated.ringPages, 2);
    assert.equal(negotiated.maxSegments, 16);
    assert.equal(negotiated.persistent, false);
  });

  test("reports each ring with log_stats=1, also from a worker", async () => {
    const words = ["--backend", "log_stats=1", "--link", "worker", "memory", "1M"];
    const command = 'qemu-io -f raw -c "write 0 4k" "$uri"';
    const { stderr } = await vbdkit(["serve", ...words, "--run", command]);
    assert.match(stderr, /^vbdkit: statistics: .*: ring 0: oo 0 .* wr [1-9]/m);
  });

  test("--shared is refused where there is no lock to leave out", async () => {
    const { stderr, code } = await vbdkit(["serve", "--shared", "memory", "1M"]);
    assert.match(stderr, /^vbdkit: --shared: driver memory locks nothing/);
    assert.equal(code, 2);
  });

  for (const link of ["thread", "worker"]) {
    test(`notes of a backend on a ${link} reach the person`, async () => {
      await using folder = await temporaryFolder();
      await writeFile(folder.file("a.img"), new Uint8Array(4096));
      const env = cleanEnvironment({ VBDKIT_NO_FFI: "1" });
      const words = ["serve", "--link", link, folder.file("a.img"), "--run", "true"];
      const { stderr } = await vbdkit(words, { env });
      assert.match(stderr, /^vbdkit: note: .*a\.img has neither locks nor holes.*\n$/);
    });
  }
});
