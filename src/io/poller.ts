/**
 * Descriptors that wake the event loop: eventfd(2) between processes, /dev/xen/evtchn, the ring of io_uring.
 *
 * Invariant: a descriptor has at most one watcher per thread, since libuv ends the process over a second one.
 */
import { fstatSync } from "node:fs";
import { invariant } from "../util/assert.ts";
import { type PollHandle, requireFfi, systemError } from "./ffi.ts";

// <sys/eventfd.h>: O_CLOEXEC, O_NONBLOCK
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/** The handles of this thread's watchers by descriptor; they die when nothing refers to them. */
const watchers = new Map<number, PollHandle>();
/** Node runs the event loop once more while it takes a thread down, and koffi ends the process over a descriptor that
 * can be read then. Worker.terminate() leaves no time for this: let workers that watch end by themselves. */
let closesAtExit = false;

function closeAtExit(): void {
  if (closesAtExit) return;
  closesAtExit = true;
  process.once("exit", () => {
    for (const handle of watchers.values()) handle.close();
    watchers.clear();
  });
}

/** What the event loop's look at the descriptors has found to do. Node surrounds its own callbacks with what makes
 * promises go on, exceptions surface and a worker end; koffi's is none of them, and a worker ended within it takes the
 * process along. So the work is done in an immediate, which runs next, in the same turn of the event loop: one for all
 * descriptors, so that what they bring about by promises is done once for all, too. */
let due: (() => void)[] = [];

function workDue(): void {
  const works = due;
  due = [];
  let done = 0;
  try {
    while (done < works.length) works[done++]!();
  } finally {
    // One that throws takes no other's turn away.
    if (done < works.length) {
      due.unshift(...works.slice(done));
      setImmediate(workDue);
    }
  }
}

/** Watching; disposal stops it, after which the descriptor may be closed (not before). */
export interface Watcher extends Disposable {
  /** Keeps the process alive, as a new watcher does. */
  ref(): void;
  unref(): void;
}

/** Calls back from the event loop whenever the descriptor can be read, for as long as it can (level-triggered): the
 * callback drains it. */
export function watchReadable(descriptor: number, callback: () => void): Watcher {
  const calls = requireFfi("waiting for a descriptor");
  invariant(!watchers.has(descriptor), `descriptor ${descriptor} is watched already`);
  const stat = fstatSync(descriptor);
  if (stat.isFile() || stat.isDirectory() || stat.isBlockDevice()) {
    throw new Error(`descriptor ${descriptor} is a file, which is always readable`);
  }
  closeAtExit();
  const work = () => {
    if (watchers.get(descriptor) === handle) callback();
  };
  // An error status (the descriptor was closed, or hung up) shows when the callback reads.
  const handle = calls.poll(descriptor, () => {
    if (due.push(work) === 1) setImmediate(workDue);
  });
  watchers.set(descriptor, handle);
  return {
    ref: () => handle.ref(),
    unref: () => handle.unref(),
    [Symbol.dispose]() {
      if (watchers.get(descriptor) !== handle) return;
      watchers.delete(descriptor);
      handle.close();
    },
  };
}

/** A counter that one process raises to wake another; nonblocking. */
export class EventDescriptor implements Disposable {
  readonly descriptor: number;
  readonly #calls = requireFfi("an event descriptor");
  /** Eight bytes for read(2) and write(2): the value written is always 1. */
  readonly #one = new BigUint64Array(new SharedArrayBuffer(8));
  readonly #count = new BigUint64Array(new SharedArrayBuffer(8));
  readonly #oneAddress: number;
  readonly #countAddress: number;
  #closed = false;

  /** Takes over an open eventfd descriptor, or makes a new one. */
  constructor(descriptor?: number) {
    this.descriptor = descriptor ?? this.#calls.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (this.descriptor < 0) throw systemError("eventfd", this.#calls.errno());
    this.#one[0] = 1n;
    this.#oneAddress = this.#calls.addressOf(this.#one);
    this.#countAddress = this.#calls.addressOf(this.#count);
  }

  /** Wakes whoever watches it. A counter that is full wakes them already. */
  signal(): void {
    if (!this.#closed) this.#calls.write(this.descriptor, this.#oneAddress, 8);
  }

  /** Sets the counter back to zero. Returns whether it had been raised. */
  drain(): boolean {
    return !this.#closed && this.#calls.read(this.descriptor, this.#countAddress, 8) === 8;
  }

  /** The watcher must be disposed before. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#calls.close(this.descriptor);
  }
}
