/** Which engine carries a file's requests, and the engines of each thread, which its files share. */
import type { Engine, EngineName } from "./engine.ts";
import { ffi, ffiMissingReason } from "./ffi.ts";
import { IoUring } from "./io-uring.ts";
import { LibuvEngine } from "./libuv-engine.ts";
import { PreadEngine } from "./pread-engine.ts";
import type { Reactor } from "./reactor.ts";
import { UringEngine } from "./uring-engine.ts";

/** "auto", or the engine that the user named. */
export type EngineChoice = "auto" | EngineName;

/** The engine for a file: io_uring, and where it is missing libuv's threads, or plain calls on tmpfs, which never wait for
 * a disk. Throws an Error that says why the one that the user named does not work here. */
export function chooseEngine(
  choice: EngineChoice,
  file: { readonly inMemory: boolean },
): EngineName {
  if (choice === "libuv") return choice;
  if (ffi() === undefined) {
    if (choice === "auto") return "libuv";
    throw new Error(`the engine ${choice} needs foreign calls, and ${ffiMissingReason()}`);
  }
  if (choice === "pread") return choice;
  const missing = ioUringMissingReason();
  if (missing === undefined) return "io_uring";
  if (choice === "auto") return file.inMemory ? "pread" : "libuv";
  throw new Error(`the engine io_uring does not work here: ${missing}`);
}

let ioUringProbe: { readonly missing: string | undefined } | undefined;

/** Why the kernel gives us no io_uring (a container often forbids it), or undefined where it does. */
export function ioUringMissingReason(): string | undefined {
  ioUringProbe ??= { missing: probe() };
  return ioUringProbe.missing;
}

function probe(): string | undefined {
  const calls = ffi();
  if (calls === undefined) return ffiMissingReason();
  try {
    new IoUring(calls, 1).close();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** An engine's use by one file, given back by disposal, when nothing of the file is in flight. */
export interface EngineLease extends Disposable {
  readonly engine: Engine;
}

const shared = new WeakMap<Reactor, Map<EngineName, { engine: Engine; users: number }>>();

/** The thread's engine of that name: made for its first file, closed after its last. */
export function leaseEngine(reactor: Reactor, name: EngineName): EngineLease {
  let engines = shared.get(reactor);
  if (engines === undefined) {
    engines = new Map();
    shared.set(reactor, engines);
  }
  const entry = engines.get(name) ?? { engine: makeEngine(reactor, name), users: 0 };
  engines.set(name, entry);
  entry.users++;
  let given = false;
  return {
    engine: entry.engine,
    [Symbol.dispose]() {
      if (given) return;
      given = true;
      if (--entry.users > 0) return;
      engines.delete(name);
      entry.engine.close();
    },
  };
}

function makeEngine(reactor: Reactor, name: EngineName): Engine {
  const calls = ffi();
  if (name === "libuv" || calls === undefined) return new LibuvEngine(reactor, calls);
  return name === "pread" ? new PreadEngine(reactor, calls) : new UringEngine(reactor, calls);
}
