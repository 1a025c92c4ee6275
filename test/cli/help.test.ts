/** Help, lists, completion, colours and pipes: what a person meets first. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { createProgram } from "../../src/cli/program.ts";
import { cleanEnvironment, vbdkit } from "../support/vbdkit.ts";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");

describe("help", { concurrency: 2 }, () => {
  test("--help names every command and exits 0", async () => {
    const { stdout, code } = await vbdkit(["--help"]);
    for (const name of ["serve", "info", "copy", "xenstore", "drivers", "filters", "completion"]) {
      assert.match(stdout, new RegExp(`^ {2}${name}\\b`, "m"));
    }
    assert.equal(code, 0);
  });

  test("no command at all is help too", async () => {
    const { stdout, code } = await vbdkit([]);
    assert.match(stdout, /^Usage: vbdkit COMMAND/);
    assert.equal(code, 0);
  });

  test("--version is that of package.json", async () => {
    const { stdout } = await vbdkit(["--version"]);
    assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
  });

  test("every command has help with an example, and every option a sentence", () => {
    for (const command of createProgram().commands) {
      assert.notEqual(command.description(), "", command.name());
      for (const option of command.options) assert.notEqual(option.description, "", option.flags);
    }
  });

  test("every command and each of its options has its place in docs/commands", () => {
    const pages: Record<string, string> = { filters: "drivers", help: "drivers" };
    for (const name of ["create", "suspend", "resume", "shutdown", "destroy"]) pages[name] = "life";
    for (const command of createProgram().commands) {
      const file = `../../docs/commands/${pages[command.name()] ?? command.name()}.md`;
      const page = readFileSync(new URL(file, import.meta.url), "utf8");
      for (const name of [command.name(), ...command.options.map((option) => option.long ?? "")]) {
        assert.ok(page.includes(name), `${file} does not tell of ${name}`);
      }
    }
  });

  test("help of a driver shows its parameters", async () => {
    const { stdout, code } = await vbdkit(["help", "file"]);
    assert.match(stdout, /^file: /);
    assert.equal(code, 0);
    assert.equal((await vbdkit(["drivers", "file"])).stdout, stdout);
  });

  test("a usage line has single spaces, and a default is what one would type", async () => {
    const { stdout } = await vbdkit(["help", "cow"]);
    assert.match(stdout, /^ {2}vbdkit serve --filter cow DISK \[key=value \.\.\.\]$/m);
    assert.match(stdout, / Default 64K\.$/m);
  });

  test("a filter that is taken for a driver is told to be one", async () => {
    const { stderr, code } = await vbdkit(["drivers", "delay"]);
    assert.match(stderr, /^vbdkit: .*; delay is a filter: vbdkit filters delay\n$/);
    assert.equal(code, 2);
    assert.match((await vbdkit(["help", "nosuch"])).stderr, /; there is about serve, .*delay/);
  });

  test("drivers and filters are listed with a line each, and as JSON", async () => {
    const { stdout } = await vbdkit(["drivers"]);
    assert.match(stdout, /^file {2,}\S/m);
    const drivers = JSON.parse((await vbdkit(["drivers", "--json"])).stdout);
    assert.ok(drivers.some((driver: { name: string }) => driver.name === "memory"));
    const filters = JSON.parse((await vbdkit(["filters", "--json"])).stdout);
    for (const filter of filters) assert.ok(filter.name && filter.summary && filter.parameters);
  });
});

describe("a well-behaved program", { concurrency: 2 }, () => {
  test("says nothing when its reader goes away", () => {
    const command = `"${process.execPath}" "${program}" serve --help | head -1`;
    const { stdout, stderr } = spawnSync("bash", ["-o", "pipefail", "-c", command], {
      encoding: "utf8",
      env: cleanEnvironment(),
    });
    assert.match(stdout, /^Usage: /);
    assert.equal(stderr, "");
  });

  test("says in a line that its output could not be written", () => {
    const command = `"${process.execPath}" "${program}" serve --help > /dev/full`;
    const { stderr, status } = spawnSync("sh", ["-c", command], {
      encoding: "utf8",
      env: cleanEnvironment(),
    });
    assert.equal(stderr, "vbdkit: standard output: no space left\n");
    assert.equal(status, 1);
  });

  test("colours nothing in a pipe, colours when forced, and not under NO_COLOR", async () => {
    const sequence = "\u001b[";
    assert.ok(!(await vbdkit(["help", "file"])).stdout.includes(sequence));
    const forced = await vbdkit(["help", "file"], { env: cleanEnvironment({ FORCE_COLOR: "1" }) });
    assert.ok(forced.stdout.includes(sequence));
    const plain = await vbdkit(["help", "file"], { env: cleanEnvironment({ NO_COLOR: "1" }) });
    assert.ok(!plain.stdout.includes(sequence));
  });

  test("completes commands, options, drivers and filters in bash", async () => {
    const complete = (line: string) => {
      const words = line.split(" ");
      const script = `source <("${process.execPath}" "${program}" completion bash)
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}
_vbdkit; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const { stdout, stderr } = spawnSync("bash", ["-c", script], { encoding: "utf8" });
      assert.equal(stderr, "");
      return stdout.trim().split("\n");
    };
    assert.deepEqual(complete("vbdkit se"), ["serve"]);
    assert.ok(complete("vbdkit serve --max-ring").includes("--max-ring-page-order"));
    assert.ok(complete("vbdkit serve mem").includes("memory"));
    assert.ok(complete("vbdkit serve --filter del").includes("delay"));
    assert.deepEqual(complete("vbdkit serve --link w"), ["worker"]);
    assert.deepEqual(complete("vbdkit serve --engine io"), ["io_uring"]);
    assert.deepEqual(complete("vbdkit serve --protocol x86_32"), ["x86_32-abi"]);
    assert.ok(complete("vbdkit completion z").includes("zsh"));
    assert.ok(complete("vbdkit xenstore l").includes("ls"));
  });

  test("completes a machine's guests and the disks of one in bash", () => {
    const script = `source <("${process.execPath}" "${program}" completion bash)
vbdkit() { case "$*" in
  "list --names") echo web; echo database ;;
  "list --names --machine lab") echo inlab ;;
  "list --names web") echo xvda; echo xvdb ;;
esac; }
complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vbdkit; echo "\${COMPREPLY[*]}"; }
complete_words vbdkit detach ''
complete_words vbdkit save --checkpoint d
complete_words vbdkit detach --machine lab ''
complete_words vbdkit resize --shrink web xvdb
complete_words vbdkit destroy --jso
complete_words vbdkit list w`;
    const { stdout, stderr } = spawnSync("bash", ["-c", script], { encoding: "utf8" });
    assert.equal(stderr, "");
    assert.deepEqual(stdout.trim().split("\n"), [
      "web database",
      "database",
      "inlab",
      "xvdb",
      "--json",
      "web",
    ]);
  });

  test("has completion for zsh and fish too", async () => {
    assert.match((await vbdkit(["completion", "zsh"])).stdout, /^#compdef vbdkit/);
    assert.match((await vbdkit(["completion", "fish"])).stdout, /complete -c vbdkit/);
  });
});
