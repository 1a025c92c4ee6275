/** Options that several commands have, each with one name, one range and one sentence. */
import { type Command, InvalidArgumentError, Option } from "commander";
import type { Link } from "../index.ts";
import type { EngineChoice } from "../store/block-store.ts";
import { parseDuration } from "../util/duration.ts";
import { parseSize } from "../util/size.ts";

/** Nobody means more, and timers count in 31 bits. */
const DAY_MILLISECONDS = 24 * 60 * 60 * 1000;

/** Of `serve`, `machine` and `connect`: where the NBD server is. */
export interface NbdOptions {
  unix?: string;
  port?: number;
  ip?: string;
}

/** Of `serve` and `machine`: where the xenstore and the control socket are, too. */
export interface ListenOptions extends NbdOptions {
  xenstore?: string;
  machine?: string;
  /** Of `machine` alone. */
  state?: string;
}

/** Of `serve` and `attach`: how a disk is opened, and what both ends of its ring may agree on. */
export interface DiskOptions extends FrontendOptions {
  engine: EngineChoice;
  shared?: true;
  link: Link;
  backend?: string[];
  maxPersistentGrants?: number;
  discard: boolean;
}

/** Of `connect`, and among those of `serve` and `attach`: what a frontend asks for. */
export interface FrontendOptions {
  frontend?: string[];
  maxRingPageOrder?: number;
  maxIndirectSegments?: number;
  persistent: boolean;
  protocol?: "x86_64-abi" | "x86_32-abi" | "native";
}

/** Of `serve`, `machine` and `connect`: the life of the process. */
export interface RunOptions {
  run?: string;
  pidfile?: string;
  exitWithParent?: true;
  json?: true;
  verbose?: true;
}

export function addListenOptions(command: Command): Command {
  return addNbdOptions(command)
    .option("--xenstore <SOCKET>", "the xenstore listens on this socket")
    .option("--machine <DIR>", "folder for the sockets, made 0700 (default: a fresh one)");
}

export function addNbdOptions(command: Command): Command {
  return command
    .optionsGroup("Where it listens:")
    .option(
      "-U, --unix <SOCKET>",
      "NBD on this Unix socket; - is one in a private folder (default)",
    )
    .addOption(
      new Option("-p, --port <PORT>", "NBD on this TCP port; 0 takes a free one")
        .argParser(integer(0, 65535))
        .conflicts("unix"),
    )
    .option("-i, --ip <ADDRESS>", "the address for --port (default: 127.0.0.1)");
}

export function addOpenOptions(command: Command): Command {
  return addEngineOption(
    command.option("--shared", "do not lock the image; you keep its writers apart"),
  );
}

export function addEngineOption(command: Command): Command {
  return command.addOption(
    new Option("--engine <ENGINE>", "how files are read and written")
      .choices(["auto", "io_uring", "pread", "libuv"])
      .default("auto"),
  );
}

export function addRingOptions(command: Command): Command {
  command
    .optionsGroup("The ring between frontend and backend:")
    .addOption(
      new Option("--link <LINK>", "where the backend runs")
        .choices(["thread", "worker", "process"])
        .default("thread"),
    )
    .option("--backend <NAME=VALUE>", "a parameter of the backend, listed below", collect)
    .option("--max-persistent-grants <N>", "grants the backend keeps mapped", integer(0, 65536))
    .option("--no-discard", "do not offer discard");
  return addFrontendOptions(command);
}

export function addFrontendOptions(command: Command): Command {
  return command
    .optionsGroup("The ring between frontend and backend:")
    .option("--frontend <NAME=VALUE>", "a parameter of the frontend, listed below", collect)
    .option("--max-ring-page-order <N>", "the ring has at most 2^N pages", integer(0, 4))
    .option(
      "--max-indirect-segments <N>",
      "4 KiB segments in one request; 0 for none",
      integer(0, 256),
    )
    .option("--no-persistent", "map and unmap grants for every request")
    .addOption(
      new Option("--protocol <ABI>", "the layout the frontend speaks").choices([
        "x86_64-abi",
        "x86_32-abi",
        "native",
      ]),
    );
}

export function addRunOptions(command: Command): Command {
  return command
    .optionsGroup("How it runs:")
    .option("--run <COMMAND>", "run a shell command, end with it and with its exit code")
    .option("-P, --pidfile <FILE>", "write the process id there once it serves")
    .option("--exit-with-parent", "end when the parent ends (always so under npm and npx)")
    .addOption(new Option("--json", "print what is served as JSON").conflicts("run"))
    .option("--verbose", "what the backends do, and stack traces");
}

/** A guest of that machine. */
export function addDomainArgument(command: Command): Command {
  return command.argument("<DOMAIN>", "the guest, by name or domid");
}

/** Of `restore` and `migrate`: what is otherwise than it was saved. */
export function addArrivalOptions(command: Command): Command {
  return command
    .option("--name <NAME>", "its name from now on")
    .option("--disk <DISKSPEC>", "what is attached for the disk of that vdev", collect);
}

/** Which machine a command asks: the rule of findServer. */
export function addMachineOption(command: Command): Command {
  return command.option(
    "--machine <SERVER>",
    "a running machine: its folder, a socket in it, its URI, or xen (default: $VBDKIT_MACHINE, or the only one)",
  );
}

/** An option that may be given again and again. */
export function collect(value: string, previous: readonly string[] = []): string[] {
  return [...previous, value];
}

export function integer(minimum: number, maximum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= minimum && value <= maximum) return value;
    throw new InvalidArgumentError(`Write a number from ${minimum} to ${maximum}.`);
  };
}

/** Bytes, one at least. */
export function size(text: string): number {
  const bytes = parsed(text, parseSize);
  if (bytes > 0) return bytes;
  throw new InvalidArgumentError("Write bytes, or 4K, 1M.");
}

/** Milliseconds, up to a day. */
export function duration(text: string): number {
  const milliseconds = parsed(text, parseDuration);
  if (milliseconds <= DAY_MILLISECONDS) return milliseconds;
  throw new InvalidArgumentError("Write a time of a day at most.");
}

function parsed(text: string, parse: (text: string) => number): number {
  try {
    return parse(text);
  } catch (error) {
    throw new InvalidArgumentError(`${text}: ${(error as Error).message}.`);
  }
}
