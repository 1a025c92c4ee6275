/**
 * What wakes a domain from another thread or process.
 *
 * Between processes it is a FIFO in the domain's folder; between threads an eventfd; between threads of a process
 * without foreign calls, Atomics.notify on the upcall word. FIFO and eventfd take the same eight bytes, and one that
 * is full has rung already.
 */
import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { ffi } from "../../io/ffi.ts";
import { EventDescriptor, watchReadable } from "../../io/poller.ts";
import { XenError } from "../domain.ts";
import type { EmbeddedDomain } from "./domain.ts";

/** Eventfds of domains that ended, for those to come. They are never closed: a thread that has not heard of the end
 * would otherwise write into whatever file got the number next. */
const spares: EventDescriptor[] = [];

/** A bell for other threads of this process; undefined where there are no foreign calls. */
export function takeThreadBell(): EventDescriptor | undefined {
  return spares.pop() ?? (ffi() === undefined ? undefined : new EventDescriptor());
}

export function returnThreadBell(bell: EventDescriptor | undefined): void {
  if (bell !== undefined) spares.push(bell);
}

/** Opens the FIFO that wakes a domain, to write or to listen. Opened for both, it never makes a writer wait for a
 * reader, nor fail for want of one. Throws XenError("EINVAL") where the path is anything but a FIFO. */
export function openProcessBell(path: string): EventDescriptor {
  const flags = constants.O_RDWR | constants.O_NONBLOCK | constants.O_NOFOLLOW;
  const descriptor = openSync(path, flags);
  if (fstatSync(descriptor).isFIFO()) return new EventDescriptor(descriptor);
  closeSync(descriptor);
  throw new XenError("EINVAL", `${path} is no FIFO`);
}

/** Has the domain woken when its bell rings, and keeps the process alive for it. */
export function listen(domain: EmbeddedDomain, bell: EventDescriptor | undefined): Disposable {
  if (bell === undefined) return listenOnWord(domain);
  return watchReadable(bell.descriptor, () => {
    bell.drain();
    domain.rung();
  });
}

/** A pending waitAsync does not keep the event loop alive; a timer that hardly ever fires does. */
const KEEPALIVE_MILLISECONDS = 2 ** 30;

function listenOnWord(domain: EmbeddedDomain): Disposable {
  const { upcall } = domain.memory;
  const alive = setInterval(() => {}, KEEPALIVE_MILLISECONDS);
  let listening = true;
  const wait = (): void => {
    const waiting = Atomics.waitAsync(upcall, 0, 0);
    if (waiting.async) void waiting.value.then(ring);
    else setImmediate(ring);
  };
  const ring = (): void => {
    if (!listening) return;
    try {
      domain.rung();
    } finally {
      wait();
    }
  };
  wait();
  return {
    [Symbol.dispose]() {
      listening = false;
      clearInterval(alive);
      Atomics.notify(upcall, 0);
    },
  };
}
