/**
 * Bugs planted on purpose, each in a copy of the sources, to see that the suites and the model find them:
 * `node --conditions=vbdkit-source test/model/planted.ts [NAME...]` prints a table of what found each, and after how long.
 *
 * planted.test.ts keeps the list applicable: each text stands in its file exactly once.
 */
import { spawn } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");

export interface PlantedBug {
  readonly name: string;
  readonly file: string;
  readonly from: string;
  readonly to: string;
}

export const plantedBugs: readonly PlantedBug[] = [
  {
    name: "a lost flush: it is answered and never done",
    file: "src/block/backend/queue.ts",
    from: "    this.#submit(slot, Operation.flush, 0);",
    to: "    slot.request.operation = Operation.flush; slot.request.status = 0; this.completed(slot.request);",
  },
  {
    name: "off by one at the end of the device",
    file: "src/block/backend/request.ts",
    from: "if (into.sector + sectors > facts.sectors) return",
    to: "if (into.sector + sectors >= facts.sectors) return",
  },
  {
    name: "an id used again while it is in flight",
    file: "src/block/frontend/commands.ts",
    from: "    this.#free.shift();",
    to: "    const used = this.#free.shift()!; if (used.sequence % 97 === 96) this.#free.push(used);",
  },
  {
    name: "a mapping leaked when another of the request fails",
    file: "src/block/backend/grant-cache.ts",
    from: "if (batch.statuses[k] === 0) this.#grants.unmap(batch.handles[k]!);",
    to: "if (batch.statuses[k] === 0 && k > 0) this.#grants.unmap(batch.handles[k]!);",
  },
  {
    name: "the answer before the pages are unmapped",
    file: "src/block/backend/queue.ts",
    from: "    const given = this.#giveBackPages(slot, errno);\n    this.#inFlight--;",
    to: "    const given = true; const pages = slot.pages; slot.pages = Object.assign(new (pages.constructor as any)(pages.capacity)); setImmediate(() => this.#cache.unmap(pages));\n    this.#inFlight--;",
  },
  {
    name: "padding of answers that is not zeroed",
    file: "src/wire/blkif.ts",
    from: "  if (layout.responseSize === 16) words[at + 3] = 0;",
    to: "",
  },
  {
    name: "an unknown status taken for success",
    file: "src/block/status.ts",
    from: "  if (status === BLKIF_RSP_OKAY) return 0;",
    to: "  if (status >= BLKIF_RSP_OKAY) return 0;",
  },
  {
    name: "the final check skipped",
    file: "src/block/backend/queue.ts",
    from: "return pending === 0 ? this.#ring.finalCheck() : pending > 0;",
    to: "return pending > 0;",
  },
  {
    name: "a barrier that does not drain",
    file: "src/block/backend/drain.ts",
    from: "    if (this.#inFlight === 1) slot.member.drained(slot);",
    to: "    slot.member.drained(slot);",
  },
  {
    name: "a persistent page used after it was given back",
    file: "src/block/backend/grant-cache.ts",
    from: "    this.#slots.delete(this.#keptReferences[slot]!);",
    to: "",
  },
  {
    name: "pages in the wrong order when a request is cut",
    file: "src/block/frontend/slot-writer.ts",
    from: "    const tail = command.length - last * PAGE_SIZE;",
    to: "    if (last > 2 && !command.indirect) [segments.references[0], segments.references[1]] = [segments.references[1]!, segments.references[0]!];\n    const tail = command.length - last * PAGE_SIZE;",
  },
  {
    name: "the second of joined requests takes its data from where the first had its own",
    file: "src/block/frontend/slot-writer.ts",
    from: "      done += length;\n      byte = 0;",
    to: "      done += request === command.request ? 0 : length;\n      byte = 0;",
  },
  {
    name: "the second of joined requests is not sent again after a resume",
    file: "src/block/frontend/queue.ts",
    from: "        request = request === last ? undefined : request.next;",
    to: "        request = undefined;",
  },
  {
    name: "a port that is kept when a connection ends",
    file: "src/block/backend/queue.ts",
    from: "    this.#channel[Symbol.dispose]();\n    this.#options.ring[Symbol.dispose]();",
    to: "    this.#options.ring[Symbol.dispose]();",
  },
];

/** What may find them, fastest first. */
const judges = [
  "test/testing/backend-suite.test.ts",
  "test/testing/frontend-suite.test.ts",
  "test/interop/power-cut.test.ts",
  "test/model/ring.test.ts",
  "test/model/states.test.ts",
  "test/model/flips.test.ts",
];
/** All judges together. */
const LIMIT_SECONDS = 120;

/** The text of the file with the bug in it. Throws where the bug no longer has exactly one place. */
export function plant({ name, file, from, to }: PlantedBug, text: string): string {
  const parts = text.split(from);
  if (parts.length !== 2) throw new Error(`${name}: ${parts.length - 1} places in ${file}`);
  return parts.join(to);
}

/** The sentence of the first test that fails; undefined where none does in the time. */
async function firstFailure(
  folder: string,
  judge: string,
  seconds: number,
): Promise<string | undefined> {
  const words = ["--conditions=vbdkit-source", "--test-reporter=tap", judge];
  const child = spawn(process.execPath, words, {
    cwd: folder,
    env: { ...process.env, NODE_TEST_CONTEXT: undefined, VBDKIT_MODEL_SECONDS: "60" },
    stdio: ["ignore", "pipe", "ignore"],
    timeout: Math.ceil(seconds * 1000),
    killSignal: "SIGKILL",
  });
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    text += chunk;
    const found = /^not ok \d+ - (.*)$/m.exec(text);
    if (found === null) return;
    resolve(found[1]);
    child.kill("SIGKILL");
  });
  child.once("close", (code, signal) => {
    // Killed for its time, it has said nothing; a crash says all.
    resolve(code === 0 || signal !== null ? undefined : `it ended with status ${code}`);
  });
  return await promise;
}

async function judgeBug(bug: PlantedBug): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "vbdkit-planted-"));
  try {
    for (const name of ["src", "test", "bin", "package.json"]) {
      cpSync(join(root, name), join(folder, name), { recursive: true });
    }
    symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
    const file = join(folder, bug.file);
    writeFileSync(file, plant(bug, readFileSync(file, "utf8")));
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    for (const judge of judges) {
      const left = LIMIT_SECONDS - elapsed();
      const failure = left > 0 ? await firstFailure(folder, judge, left) : undefined;
      if (failure !== undefined) {
        return `found in ${elapsed().toFixed(1)} s by ${judge}: ${failure}`;
      }
    }
    return `NOT FOUND in ${elapsed().toFixed(0)} s`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const words = process.argv.slice(2);
  for (const bug of plantedBugs) {
    if (words.length > 0 && !words.some((word) => bug.name.includes(word))) continue;
    console.log(`${bug.name}: ${await judgeBug(bug)}`);
  }
}
