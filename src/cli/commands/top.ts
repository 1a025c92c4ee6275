/** `vbdkit top`: what the disks of a running server do, again and again, as xentop shows it. */
import { setTimeout as sleep } from "node:timers/promises";
import { Command, InvalidArgumentError, Option } from "commander";
import type { ServerStatistics } from "../../trace/statistics.ts";
import { parseDuration } from "../../util/duration.ts";
import { ask } from "../ask.ts";
import { findServer } from "../control.ts";
import { UsageError } from "../errors.ts";
import { print } from "../output.ts";
import { Screen } from "../screen.ts";
import { StopSignal } from "../signals.ts";
import { topLines, topScreen } from "../top-text.ts";

/** A server that is asked more often does little else. */
const MIN_DELAY_MS = 100;

/** The last is Ctrl-C, which a keyboard in raw mode sends as a byte. */
const QUIT = ["q", "Q", "\x03"];

interface TopOptions {
  batch?: true;
  iterations?: number;
  delay: number;
}

export function topCommand(): Command {
  return new Command("top")
    .description("what the disks of a running server do, refreshed each second, as xentop shows it")
    .argument("[SERVER]", "its folder, a socket in it, or its URI")
    .addOption(
      new Option("-d, --delay <SECONDS>", "time between two looks")
        .argParser(delay)
        .default(1000, "1"),
    )
    .option("-b, --batch", "print table after table instead of a screen")
    .option("-i, --iterations <N>", "end after N looks", iterations)
    .addHelpText(
      "after",
      `
Without SERVER it is $VBDKIT_MACHINE, or the one server of yours that runs.
q quits. Where standard output is no terminal, one table is printed, or with --batch or --iterations several.
The first look has the rates since the server began.

Examples:
  vbdkit top
  vbdkit top -b -i 3 -d 5 /tmp/vbdkit-x1y2z3
`,
    )
    .action(async (name: string | undefined, options: TopOptions) => {
      const directory = await findServer(name);
      const live = process.stdout.isTTY && options.batch === undefined;
      await (live ? showScreen(directory, options) : printTables(directory, options));
    });
}

/** Statistics as often as asked for, each with those before; ends when `signal` aborts. */
async function* samples(
  directory: string,
  { iterations = Number.POSITIVE_INFINITY, delay }: TopOptions,
  signal: AbortSignal,
): AsyncGenerator<[now: ServerStatistics, before: ServerStatistics | undefined]> {
  let before: ServerStatistics | undefined;
  for (let look = 0; look < iterations && !signal.aborted; look++) {
    if (look > 0) await sleep(delay, undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    const now = await ask<ServerStatistics>(directory, "stats").catch((error: unknown) => {
      if (look === 0 || !(error instanceof UsageError)) throw error;
      throw new Error(`${directory}: the server has ended`, { cause: error });
    });
    yield [now, before];
    before = now;
  }
}

async function printTables(directory: string, options: TopOptions): Promise<void> {
  using stop = new StopSignal();
  const bounded = options.batch || options.iterations !== undefined;
  const looks = bounded ? options : { ...options, iterations: 1 };
  for await (const [now, before] of samples(directory, looks, stop.signal)) {
    print(topLines(now, before).join("\n"));
  }
}

async function showScreen(directory: string, options: TopOptions): Promise<void> {
  using stop = new StopSignal();
  let draw = () => {};
  using screen = new Screen(
    (key) => {
      if (QUIT.some((wanted) => key.includes(wanted))) stop.stop(key);
    },
    () => draw(),
  );
  for await (const [now, before] of samples(directory, options, stop.signal)) {
    draw = () => screen.draw(topScreen(now, before, screen.size));
    draw();
  }
}

function delay(text: string): number {
  try {
    return Math.max(MIN_DELAY_MS, parseDuration(text));
  } catch (error) {
    throw new InvalidArgumentError(`${text}: ${(error as Error).message}.`);
  }
}

function iterations(text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Write a count.");
}
