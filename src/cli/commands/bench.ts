/** `vbdkit bench`: how fast a disk is, through a ring or by itself. */
import { Command, Option } from "commander";
import type { BenchResult } from "../bench-disk.ts";
import { type BenchOptions, benchPatterns, MAX_DEPTH } from "../bench-options.ts";
import { UsageError } from "../errors.ts";
import { knobHelp } from "../knobs.ts";
import { addOpenOptions, addRingOptions, collect, duration, integer, size } from "../options.ts";
import { print, printJson } from "../output.ts";
import { Patience } from "../patience.ts";
import { Progress } from "../progress.ts";
import { StopSignal } from "../signals.ts";

/** A line that is looked at. */
const LOOK_MILLISECONDS = 100;
/** Of what is not a terminal. */
const PAGE_COLUMNS = 80;

export function benchCommand(): Command {
  const command = new Command("bench")
    .description("measure how fast a disk is, through a ring or by itself")
    .argument("[DISK...]", "[DRIVER] NAME [key=value ...]")
    .usage("[OPTION...] DISK")
    .optionsGroup("The load, in fio's words:")
    .addOption(
      new Option("--rw <PATTERN>", "what is done, and whether at random places")
        .choices(Object.keys(benchPatterns))
        .default("randread"),
    )
    .addOption(new Option("--bs <SIZE>", "bytes of a request").argParser(size).default(4096, "4K"))
    .addOption(
      new Option("--iodepth <N>", "requests in flight")
        .argParser(integer(1, MAX_DEPTH))
        .default(32),
    )
    .addOption(
      new Option("--runtime <TIME>", "how long to measure").argParser(duration).default(5000, "5s"),
    )
    .addOption(
      new Option("--ramp-time <TIME>", "how long to run before measuring")
        .argParser(duration)
        .default(500, "500ms"),
    )
    .option("--size <SIZE>", "use the first SIZE bytes of the disk alone", size)
    .option(
      "--rwmixread <PERCENT>",
      "reads among a hundred of rw or randrw (default: 50)",
      integer(0, 100),
    )
    .option("--destroy-data", "writing is all right: what is on the disk may be lost")
    .optionsGroup("The disk:")
    .option("--filter <NAME>", "put a filter before it; the first is outermost", collect);
  addOpenOptions(command);
  const others = new Set(command.options);
  addRingOptions(command);
  const ofRing = command.options.filter((option) => !others.has(option));
  return command
    .addOption(
      new Option("--no-ring", "measure the disk itself: no frontend, ring or backend").conflicts(
        ofRing.map((option) => option.attributeName()),
      ),
    )
    .optionsGroup("Options:")
    .option("--json", "print JSON")
    .option("--verbose", "stack traces too")
    .addHelpText("after", () => `\n${knobHelp()}\n${examples}`)
    .action(bench);
}

const examples = `
It reads, and changes nothing, unless --rw says to write and --destroy-data that it may.
A request goes the whole way: frontend, ring, backend, filters, driver. With --no-ring it goes to the disk alone; the
difference is what the ring costs. Ctrl-C shows what was measured until then.

Examples:
  vbdkit bench disk.img
  vbdkit bench --rw read --bs 1M --iodepth 8 disk.img cache=none
  vbdkit bench --no-ring nbd://host/export
  vbdkit bench --rw randrw --rwmixread 70 --destroy-data memory 1G
  vbdkit bench --link worker --max-ring-page-order 4 --iodepth 256 disk.img
  vbdkit bench --json --runtime 30s disk.img | jq .reads.latencyMicroseconds.p99
`;

async function bench(words: string[], options: BenchOptions): Promise<void> {
  if (words.length === 0) throw new UsageError("bench needs a disk, as vbdkit bench memory 1G");
  using stop = new StopSignal();
  using patience = new Patience(stop.signal);
  const [{ benchPlan }, { BenchDisk }] = await Promise.all([
    import("../bench-plan.ts"),
    import("../bench-disk.ts"),
  ]);
  const plan = await benchPlan(words, options);
  await using disk = await BenchDisk.open(plan, stop.signal);
  patience.server = disk;
  const { benchLine, benchText } = await import("../bench-text.ts");
  const { blockBytes } = plan.workload;
  let result: BenchResult;
  {
    using progress = new Progress(plan.runtimeMilliseconds, (done, total) =>
      benchLine(done, total, disk.requests, blockBytes),
    );
    using _looks = every(LOOK_MILLISECONDS, () => {
      const { milliseconds } = disk;
      if (milliseconds > 0) progress.update(Math.min(milliseconds, plan.runtimeMilliseconds));
    });
    result = await disk.measure(stop.signal);
    progress.clear();
  }
  if (options.json) printJson(result);
  else print(benchText(result, process.stdout.columns || PAGE_COLUMNS));
  stop.signal.throwIfAborted();
}

function every(milliseconds: number, look: () => void): Disposable {
  const timer = setInterval(look, milliseconds);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
