/** To be imported before the program (node --import): its modules are loaded without the checks that its argument names in
 * `trusting` (checks.ts). */
import { registerHooks } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { editedModules, withoutChecks } from "./checks.ts";
import type { Cost } from "./costs.ts";

const { trusting = [] } = JSON.parse(process.argv[2]!) as Cost;
const sources = pathToFileURL(join(import.meta.dirname, "../../src/")).href;
const edited = editedModules(trusting);

registerHooks({
  load(url, context, next) {
    const loaded = next(url, context);
    const module = url.slice(sources.length);
    if (!url.startsWith(sources) || !edited.delete(module)) return loaded;
    return { ...loaded, source: withoutChecks(module, String(loaded.source), trusting) };
  },
});

process.once("exit", () => {
  if (edited.size === 0) return;
  console.error(`never loaded, hence not edited: ${[...edited].join(", ")}`);
  process.exitCode = 1;
});
