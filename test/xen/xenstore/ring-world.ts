/** Two ends of a xenstore ring in one thread, without a machine: a page, and a channel that only remembers. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { type EventChannel, PAGE_SIZE } from "../../../src/xen/domain.ts";
import { XenStoreDaemon, type XenStoreDaemonOptions } from "../../../src/xen/xenstore/daemon.ts";
import { RingPage } from "../../../src/xen/xenstore/ring-transport.ts";

class Channel implements EventChannel {
  readonly sharesThread = true;
  readonly port = 1;
  onevent: (() => void) | undefined;
  other: Channel | undefined;
  onnotify: (() => void) | undefined;
  #closed = false;

  notify(): void {
    const { other } = this;
    this.onnotify?.();
    if (!this.#closed) setImmediate(() => other?.onevent?.());
  }

  mask(): void {}

  unmask(): void {}

  [Symbol.dispose](): void {
    this.#closed = true;
    this.onevent = undefined;
  }
}

/** The page of one domain, with the channel of either end. */
export class Ring {
  readonly page: Uint8Array = new Uint8Array(new SharedArrayBuffer(PAGE_SIZE));
  readonly words: RingPage = new RingPage(this.page);
  readonly guest: EventChannel;
  /** Called from within a notification of the guest. */
  onnotify: (() => void) | undefined;
  readonly #guest = new Channel();

  constructor() {
    this.guest = this.#guest;
  }

  /** The daemon's end, as of a daemon that has just started. */
  open(): { page: Uint8Array; channel: EventChannel } & Disposable {
    const channel = new Channel();
    channel.other = this.#guest;
    channel.onnotify = () => this.onnotify?.();
    this.#guest.other = channel;
    return { page: this.page, channel, [Symbol.dispose]: () => channel[Symbol.dispose]() };
  }

  /** As a guest does that plays by no rules: bytes at req_prod, and that index moved. */
  put(bytes: Uint8Array): void {
    const at = this.words.get("req_prod");
    for (const [i, byte] of bytes.entries()) this.page[(at + i) % 1024] = byte;
    this.words.set("req_prod", (at + bytes.length) >>> 0);
    this.guest.notify();
  }

  /** What lies in the response ring; it stays there. */
  get answers(): Buffer {
    const from = this.words.get("rsp_cons");
    const length = this.words.get("rsp_prod") - from;
    return Buffer.from(Array.from({ length }, (_, i) => this.page[1024 + ((from + i) % 1024)]!));
  }
}

/** A daemon that finds the rings of the domains in `rings`. */
export function daemonWithRings(
  rings: ReadonlyMap<number, Ring>,
  options: XenStoreDaemonOptions = {},
): XenStoreDaemon {
  return new XenStoreDaemon({ ...options, openRing: (domid) => rings.get(domid)?.open() });
}

/** So many turns of the event loop that whatever was begun has ended. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 12; turn++) await nextTurn();
}
