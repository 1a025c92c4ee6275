/** `vbdkit test`: the published suites on a disk of the user's, or on our two drivers in front of and behind it. */
import { fileURLToPath } from "node:url";
import { Command, Option } from "commander";
import { siblingModule } from "../../io/sibling.ts";
import type { BlockStore, StoreSpec } from "../../store/block-store.ts";
import { checkName } from "../disks.ts";
import { ExitCode, UsageError } from "../errors.ts";
import { print } from "../output.ts";

const suites = ["store", "backend", "frontend"] as const;

/** What the process of a suite is told. */
export interface SuiteJob {
  readonly suite: (typeof suites)[number];
  /** The disk, in the names of the tests. */
  readonly name: string;
  readonly spec: StoreSpec;
}

interface TestOptions {
  filter?: string[];
  overwrite?: true;
  reporter: "spec" | "tap";
}

/** Bytes at the start of a disk that the suites write; a smaller disk is too small for them. */
const USED_BYTES = 2 ** 20;
/** Bytes read at once when looking whether a disk is empty. */
const CHUNK_BYTES = 2 ** 18;

export function testCommand(): Command {
  return new Command("test")
    .description("run the suite that every disk, backend and frontend must pass")
    .argument(
      "[WHAT]",
      "store (the disk itself, if absent), backend or frontend (it behind a ring)",
    )
    .argument("[DISK...]", "[DRIVER] NAME [key=value ...]")
    .usage("[store|backend|frontend] [OPTION...] DISK")
    .option("--filter <NAME>", "put a filter before it; the first is outermost", collect)
    .option("--overwrite", "the disk's first MiB may be destroyed")
    .addOption(
      new Option("--reporter <NAME>", "how outcomes are printed")
        .choices(["spec", "tap"])
        .default("spec"),
    )
    .addHelpText(
      "after",
      `
The suite writes to the first MiB of the disk: a disk that holds something there is refused without --overwrite.
The last line is "N passed, N failed"; the exit code is 1 where something failed.

Examples:
  vbdkit test memory 4M
  vbdkit test store --overwrite scratch.img
  vbdkit test backend --filter cow golden.img
  vbdkit test frontend --reporter tap memory 4M
`,
    )
    .action(runTests);
}

async function runTests(
  first: string | undefined,
  rest: string[],
  options: TestOptions,
): Promise<void> {
  const named = suites.find((name) => name === first);
  const words = named === undefined && first !== undefined ? [first, ...rest] : rest;
  if (words.length === 0) throw new UsageError("test needs a disk, as vbdkit test memory 4M");
  const { driverNames } = await import("../catalogue.ts");
  checkName(words, driverNames());
  const { openStore, parseDisk } = await import("../../index.ts");
  const spec = parseDisk(words, options.filter ?? []);
  await using store = await openStore(spec);
  const suite = named ?? "store";
  await checkDisk(store, suite, options.overwrite === true);
  // The suite opens it again and again.
  await store[Symbol.asyncDispose]();
  const job: SuiteJob = { suite, name: words.join(" "), spec };
  const { passed, failed } = await runSuite(job, options.reporter);
  print(`${passed} passed, ${failed} failed`);
  if (failed > 0 || passed === 0) process.exitCode = ExitCode.failure;
}

/** Refuses a disk that a suite cannot be run on, or that would lose something. */
async function checkDisk(store: BlockStore, suite: string, overwrite: boolean): Promise<void> {
  const { size, readOnly } = store.info;
  const least = suite === "store" ? 65536 : USED_BYTES;
  if (size < least) throw new UsageError(`the disk has ${size} bytes; the suite needs ${least}`);
  if (readOnly || overwrite) return;
  const { threadReactor } = await import("../../io/reactor.ts");
  const { Disk } = await import("../../index.ts");
  const disk = new Disk(store, threadReactor());
  const used = Math.min(size, USED_BYTES);
  for (let offset = 0; offset < used; offset += CHUNK_BYTES) {
    const bytes = await disk.read(offset, Math.min(CHUNK_BYTES, used - offset));
    if (bytes.some((byte) => byte !== 0)) {
      throw new UsageError(
        "the disk holds data in its first MiB, which the suite would destroy: --overwrite allows it",
      );
    }
  }
}

async function runSuite(
  job: SuiteJob,
  reporter: "spec" | "tap",
): Promise<{ passed: number; failed: number }> {
  // What most commands can start without.
  const { run } = await import("node:test");
  const { spec: specReporter, tap } = await import("node:test/reporters");
  const module = fileURLToPath(siblingModule(import.meta.url, "../suite-process"));
  const outcome = { passed: 0, failed: 0 };
  const stream = run({ files: [module], argv: [JSON.stringify(job)], execArgv: process.execArgv });
  stream.on("test:summary", ({ counts, file }) => {
    if (file !== undefined) return;
    outcome.passed = counts.passed;
    outcome.failed = counts.tests - counts.passed;
  });
  const printed = reporter === "tap" ? stream.compose(tap) : stream.compose(new specReporter());
  for await (const chunk of printed) process.stdout.write(chunk);
  return outcome;
}

function collect(value: string, previous: readonly string[] = []): string[] {
  return [...previous, value];
}
