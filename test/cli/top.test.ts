/** `vbdkit top`: its rates and how it makes do with a small terminal, as text; then the real thing in a pty. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { columnLines } from "../../src/cli/columns.ts";
import { topLines, topScreen } from "../../src/cli/top-text.ts";
import type { DiskStatistics, ServerStatistics } from "../../src/trace/statistics.ts";
import {
  cleanEnvironment,
  finished,
  type Served,
  serve,
  temporaryFolder,
  vbdkit,
} from "../support/vbdkit.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");

function disk(vdev: string, rd_req: number, rd_sect: number, domain = 1): DiskStatistics {
  const none = { oo_req: 0, wr_req: 0, f_req: 0, ds_req: 0, wr_sect: 0 };
  return {
    ...{
      vdev,
      domain,
      guest: `guest-${domain}`,
      disk: "memory 1G",
      link: "thread",
      inFlight: 3,
      rings: [],
    },
    statistics: { ...none, rd_req, rd_sect },
    frontend: { waits: {}, merged: 0, copiedBytes: 0, errors: 0 },
  };
}
function server(uptimeSeconds: number, ...disks: DiskStatistics[]): ServerStatistics {
  return { version: "1.2.3", pid: 42, uptimeSeconds, disks, domains: [] };
}
const cells = (line: string | undefined) => line!.trim().split(/\s+/);

test("a guest's line has the sums of its disks, and rates are those between two samples", () => {
  const before = server(10, disk("xvda", 100, 800), disk("xvdb", 0, 0));
  const now = server(12, disk("xvda", 300, 800 + 4000), disk("xvdb", 20, 0));
  const [titles, guest, first, second] = topLines(now, before).map(cells);
  assert.equal(
    titles!.join(" "),
    "NAME VBDS VBD_OO VBD_RD VBD_WR VBD_RSECT VBD_WSECT IOPS MB/s FLIGHT",
  );
  assert.equal(guest!.join(" "), "guest-1 2 0 320 0 4800 0 110 1.0 6");
  assert.equal(first!.join(" "), "xvda - 0 300 0 4800 0 100 1.0 3");
  assert.equal(second!.join(" "), "xvdb - 0 20 0 0 0 10 0.0 3");
});

test("the first rates are those since the server began, and so are those of a ring that is new", () => {
  const now = server(10, disk("xvda", 100, 0));
  assert.equal(cells(topLines(now, undefined)[2])[7], "10");
  assert.equal(cells(topLines(now, server(5, disk("xvda", 500, 0)))[2])[7], "20");
});

test("guests are told apart", () => {
  const lines = topLines(server(1, disk("xvda", 1, 1, 1), disk("xvdb", 1, 1, 3)), undefined);
  const names = lines.map((line) => cells(line)[0]);
  assert.deepEqual(names, ["NAME", "guest-1", "xvda", "guest-3", "xvdb"]);
});

test("a screen of any size is neither longer nor wider than the terminal", () => {
  const disks = Array.from({ length: 20 }, (_, index) => disk(`xvd${index}`, 2 ** 31, 2 ** 40));
  for (const columns of [1, 20, 40, 60, 80, 200]) {
    for (const rows of [1, 2, 3, 5, 24, 50]) {
      const lines = topScreen(server(1, ...disks), undefined, { columns, rows });
      assert.ok(lines.length <= rows, `${lines.length} lines of ${rows}`);
      for (const line of lines) {
        assert.ok(stripVTControlCharacters(line).length <= columns, `"${line}" in ${columns}`);
      }
    }
  }
  const lines = topScreen(server(1, ...disks), undefined, { columns: 80, rows: 10 });
  assert.equal(lines.at(-1), "... and 13 more");
});

test("columns that may go do so in their order, and numbers stand right", () => {
  const columns = [
    { title: "NAME", left: true, cell: () => "a" },
    { title: "COUNT", expendable: 1, cell: () => 7 },
    { title: "LEAST", expendable: 2, cell: () => 8 },
  ] as const;
  assert.deepEqual(columnLines(columns, [0]), ["NAME  COUNT  LEAST", "a         7      8"]);
  assert.deepEqual(columnLines(columns, [0], 17), ["NAME  COUNT", "a         7"]);
  assert.deepEqual(columnLines(columns, [0], 3), ["NAME", "a"]);
});

describe("top of a running server", { concurrency: 2 }, () => {
  let served: Served;
  before(async () => {
    served = await serve(["memory", "1M"]);
  });
  after(() => served[Symbol.asyncDispose]());

  test("is one plain table where standard output is no terminal", async () => {
    const { stdout, stderr, code } = await vbdkit(["top", served.info.directory]);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.deepEqual(
      stdout
        .trimEnd()
        .split("\n")
        .map((line) => cells(line)[0]),
      ["NAME", "guest-1", "xvda"],
    );
  });

  test("is as many tables as --iterations asks for", async () => {
    const words = ["top", "-b", "-i", "3", "-d", "0.1", served.info.directory];
    const { stdout } = await vbdkit(words);
    assert.equal(stdout.match(/^NAME/gm)?.length, 3);
  });

  test("fills the alternate screen of a terminal, leaves it at q, and the keyboard as it was", async () => {
    const screen = await inTerminal(served.info.directory, "stty cols 60 rows 5; stty -g", "q");
    const [entered, left] = ["\x1b[?1049h", "\x1b[?1049l"].map((text) => screen.indexOf(text));
    const shown = screen.indexOf("guest-1");
    assert.ok(entered! >= 0 && entered! < shown && shown < left!);
    assert.ok(screen.includes("\x1b[7m"), "the titles are inverse");
    assert.ok(!screen.includes("VBD_RSECT"), "no room for sectors");
    const modes = screen.match(/^[\da-f:]{20,}\r?$/gm);
    assert.equal(modes?.length, 2);
    assert.equal(modes?.[0], modes?.[1]);
  });

  test("is without colours under NO_COLOR, and ends at Ctrl-C", async () => {
    const screen = await inTerminal(served.info.directory, "export NO_COLOR=1", "\x03");
    assert.ok(screen.includes("\x1b[?1049l"));
    assert.ok(!screen.includes("\x1b[7m"));
  });

  test("ends, and quietly, when its terminal is closed", async () => {
    await using folder = await temporaryFolder();
    const said = folder.file("stderr");
    const top = `exec "${process.execPath}" "${program}" top -d 0.1 "${served.info.directory}"`;
    const terminal = spawn(
      "script",
      ["--quiet", "--command", `echo "pid $$"; ${top} 2> "${said}"`, "/dev/null"],
      { env: cleanEnvironment({ TERM: "xterm" }) },
    );
    let text = "";
    for await (const chunk of terminal.stdout.setEncoding("utf8")) {
      text += chunk;
      if (text.includes("guest-1")) break;
    }
    terminal.kill("SIGKILL");
    const pid = text.match(/pid (\d+)/)![1]!;
    for (let tries = 0; existsSync(`/proc/${pid}`) && tries < 100; tries++) await sleep(50);
    assert.ok(!existsSync(`/proc/${pid}`), `process ${pid} outlives its terminal`);
    assert.equal(readFileSync(said, "utf8"), "");
  });

  test("says so when the server ends", async () => {
    await using other = await serve(["memory", "1M"]);
    const words = [program, "top", "-b", "-d", "0.2", other.info.directory];
    const child = spawn(process.execPath, words, { env: cleanEnvironment() });
    child.stdout.once("data", () => other.child.kill("SIGTERM"));
    const { stderr, code } = await finished(child);
    assert.equal(stderr, `vbdkit: ${other.info.directory}: the server has ended\n`);
    assert.equal(code, 1);
  });

  test("tells in its help the time between two looks in seconds", async () => {
    assert.match((await vbdkit(["top", "--help"])).stdout, /--delay SECONDS +.*\(default: 1\)/);
  });

  test("refuses a delay and a count that are none", async () => {
    for (const words of [
      ["-d", "soon"],
      ["-i", "0"],
    ]) {
      const { code } = await vbdkit(["top", ...words, served.info.directory]);
      assert.equal(code, 2);
    }
  });
});

/** What a terminal of its own got from `vbdkit top`, run after `setup` in a shell; `key` is pressed once it shows. */
async function inTerminal(directory: string, setup: string, key: string): Promise<string> {
  const top = `"${process.execPath}" "${program}" top -d 0.2 "${directory}"`;
  const command = `${setup}; ${top}; echo "ended with $?"; stty -g`;
  const child = spawn("script", ["--quiet", "--return", "--command", command, "/dev/null"], {
    env: cleanEnvironment({ TERM: "xterm" }),
  });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    const shown = text.includes("guest-1");
    text += chunk;
    if (!shown && text.includes("guest-1")) child.stdin.write(key);
  });
  const { code } = await finished(child);
  assert.equal(code, 0);
  assert.match(text, /ended with 0/);
  return text;
}
