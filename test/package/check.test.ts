/** The checks of the whole tree: style and layers (biome), types (tsc), dead code (knip). */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

const root = join(import.meta.dirname, "../..");

/** Fails with what the tool printed: that is all one wants to read. */
async function check(tool: string, ...words: string[]): Promise<void> {
  const program = join(root, "node_modules/.bin", tool);
  await promisify(execFile)(program, words, { cwd: root }).catch((error) => {
    throw new Error(`${tool} ${words.join(" ")}\n${error.stdout}${error.stderr}`);
  });
}

test("the style, the layers and the absence of import cycles hold", () =>
  check("biome", "check", "--error-on-warnings", "--colors=off"));

test("the types hold, in sources, tests, scripts and examples", () =>
  check("tsc", "--pretty", "false"));

test("every file, export and dependency is used", () => check("knip", "--no-progress"));
