/**
 * The package as npm would publish it: packed, installed from the tarball in an empty folder, and used there on both
 * Nodes that we promise. What only works in a checkout fails here.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, readFile, rename, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { cleanEnvironment, type TemporaryFolder, temporaryFolder } from "../support/vbdkit.ts";

const root = join(import.meta.dirname, "../..");
const modules = join(root, "node_modules");
/** What goes into the tarball, and what it is built with. */
const sources = ["bin", "src", "docs", "examples", "LICENSE", "README.md", "CHANGELOG.md"].concat(
  "package.json",
  ".npmrc",
  "tsconfig.json",
  "tsconfig.build.json",
);

async function run(program: string, words: readonly string[], cwd: string): Promise<string> {
  const env = cleanEnvironment();
  const { stdout } = await promisify(execFile)(program, words, { cwd, env }).catch((error) => {
    throw new Error(`${program} ${words.join(" ")}\n${error.stdout}${error.stderr}`);
  });
  return stdout;
}

/** The oldest Node we promise, from npm, once per checkout. */
async function oldestNode(): Promise<string> {
  const folder = join(root, ".cache/node-24");
  const program = join(folder, "node_modules/node/bin/node");
  if (existsSync(program)) return program;
  const work = `${folder}.${process.pid}`;
  await mkdir(work, { recursive: true });
  const manifest = { private: true, dependencies: { node: "24" }, allowScripts: { node: true } };
  await writeFile(join(work, "package.json"), JSON.stringify(manifest));
  await run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund"], work);
  await rename(work, folder).catch(() => rm(work, { recursive: true, force: true }));
  return program;
}

describe("the published package", () => {
  let folder: TemporaryFolder;
  let home: string;
  let subpaths: string[];
  before(async () => {
    folder = await temporaryFolder();
    const build = folder.file("build");
    for (const name of sources) await cp(join(root, name), join(build, name), { recursive: true });
    await symlink(modules, join(build, "node_modules"));
    const tarball = await run("npm", ["pack", "--silent", "--pack-destination", ".."], build);
    home = folder.file("home");
    await mkdir(home);
    await writeFile(join(home, "package.json"), '{"private":true,"type":"module"}');
    const file = folder.file(tarball.trim().split("\n").at(-1)!);
    await run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", file], home);
    const manifest = JSON.parse(await readFile(join(root, "package.json"), "utf8"));
    subpaths = Object.keys(manifest.exports).map((path) => path.replace(/^\./, "vbdkit"));
  });
  after(() => folder[Symbol.asyncDispose]());

  test("has the program, the build and nothing of the sources", () => {
    const installed = join(home, "node_modules/vbdkit");
    for (const name of ["bin/vbdkit.js", "dist/index.js", "dist/index.d.ts", "README.md"]) {
      assert.ok(existsSync(join(installed, name)), name);
    }
    for (const name of ["src", "test", "scripts"]) {
      assert.ok(!existsSync(join(installed, name)), name);
    }
  });

  test("has what its README links to, and runs the README's lines", async () => {
    const installed = join(home, "node_modules/vbdkit");
    const readme = await readFile(join(installed, "README.md"), "utf8");
    const links = [...readme.matchAll(/\]\(([^)]+)\)/g)].map((match) => match[1]!);
    assert.ok(links.length > 0);
    for (const link of links) assert.ok(existsSync(join(installed, link)), link);
    const lines = /^```ts\n([\s\S]*?)^```$/m.exec(readme)![1]!;
    await writeFile(join(home, "disk.mts"), lines);
    await writeFile(join(home, "disk.img"), "");
    await truncate(join(home, "disk.img"), 2 ** 20);
    const printed = await run(process.execPath, ["disk.mts"], home);
    assert.match(printed, /^XENSTORED_PATH=\S+ xenstore-ls -f\n\{\n {2}protocol/);
  });

  test("its types serve a consumer", async () => {
    const lines = subpaths
      .filter((path) => !path.endsWith(".json"))
      .map((path, index) => `import * as part${index} from "${path}"; void part${index};`);
    const use = `import { Machine, openStore } from "vbdkit";
export async function size(): Promise<number> {
  await using machine = await Machine.start();
  await using disk = await machine.attach(await openStore("disk.img"), { vdev: "xvda" });
  return disk.info.size;
}`;
    await writeFile(join(home, "consumer.ts"), `${lines.join("\n")}\n${use}\n`);
    const options = ["--strict", "--noEmit", "--target", "es2025", "--module", "nodenext"];
    const types = ["--lib", "es2025,esnext.disposable", "--types", "node"];
    const where = ["--typeRoots", join(modules, "@types"), "consumer.ts"];
    await run(join(modules, ".bin/tsc"), [...options, ...types, ...where], home);
  });

  const nodes = { "this Node": async () => process.execPath, "Node 24": oldestNode };
  for (const [name, find] of Object.entries(nodes)) {
    test(`works on ${name}: program, import, require, worker and process`, async () => {
      const node = await find();
      const program = join(home, "node_modules/vbdkit/bin/vbdkit.js");
      const cli = (...words: string[]) => run(node, [program, ...words], home);
      assert.match(await cli("--version"), /^\d+\.\d+\.\d+\n$/);
      assert.match(await cli("help", "serve"), /^Usage: vbdkit serve/);
      for (const link of ["thread", "worker", "process"]) {
        const words = ["serve", "--link", link, "memory", "1M", "--run", 'nbdinfo --size "$uri"'];
        assert.equal(await cli(...words), "1048576\n", link);
      }
      const code = subpaths.filter((path) => !path.endsWith(".json")).map((path) => `"${path}"`);
      const imports = code.map((path) => `await import(${path})`).join(", ");
      const check = "if ([PARTS].some((part) => Object.keys(part).length === 0)) process.exit(9);";
      await run(node, ["--input-type=module", "-e", check.replace("PARTS", imports)], home);
      const requires = code.map((path) => `require(${path})`).join(", ");
      await run(node, ["--input-type=commonjs", "-e", check.replace("PARTS", requires)], home);
    });
  }

  test("says which Node it needs on one that is too old", async () => {
    const older = 'Object.defineProperty(process,"versions",{value:{node:"20.1.0"}})';
    const words = ["--import", `data:text/javascript,${older}`, join(root, "bin/vbdkit.js")];
    await assert.rejects(run(process.execPath, words, home), /vbdkit: needs Node\.js 24 or later/);
  });
});
