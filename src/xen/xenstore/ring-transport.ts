/**
 * A transport over the page that a domain shares with the xenstore (docs/misc/xenstore-ring.txt), for either end.
 * Who begins, ends and begins anew is known to ring-guest.ts and ring-service.ts.
 *
 * Invariant: nothing in the page is believed. Our own two indexes are kept here and only written there; the peer's are
 * read once each time, and one that no honest peer could have written ends this transport (ERANGE), and nothing else.
 * Bytes are copied out before anybody looks at them.
 */
import { XENSTORE_RING_SIZE, XenStoreInterface } from "../../wire/xenstore-ring.ts";
import { type EventChannel, PAGE_SIZE, XenError } from "../domain.ts";
import type { XenStoreTransport } from "./transport.ts";

/** The page and the channel to whoever has it too. */
export interface XenStoreRing {
  /** PAGE_SIZE bytes, shared. */
  readonly page: Uint8Array;
  readonly channel: EventChannel;
}

/** Where an end of a ring is. */
export interface RingPosition {
  /** It has read up to there. */
  readonly consumed: number;
  /** What it sent last, and where that begins. */
  readonly sent: { readonly start: number; readonly bytes: Uint8Array } | undefined;
}

type WordName = Exclude<keyof typeof XenStoreInterface, "req" | "rsp">;

/** The words of the page by name. */
export class RingPage {
  readonly bytes: Uint8Array;
  readonly #words: Uint32Array;

  constructor(page: Uint8Array) {
    this.bytes = page;
    this.#words = new Uint32Array(page.buffer, page.byteOffset, PAGE_SIZE / 4);
  }

  get(name: WordName): number {
    return Atomics.load(this.#words, XenStoreInterface[name] / 4);
  }

  set(name: WordName, value: number): void {
    Atomics.store(this.#words, XenStoreInterface[name] / 4, value);
  }

  /** Somebody has sent something here. */
  get used(): boolean {
    return this.get("req_prod") !== 0 || this.get("rsp_prod") !== 0;
  }
}

/** The names of one end's streams. */
const directions = {
  daemon: { in: "req", out: "rsp" },
  guest: { in: "rsp", out: "req" },
} as const;

export class RingTransport implements XenStoreTransport {
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  ondrain: (() => void) | undefined;
  onclose: ((reason?: Error) => void) | undefined;
  /** Called before the other end sees that there is room again. */
  onread: (() => void) | undefined;
  readonly #page: RingPage;
  readonly #channel: EventChannel;
  readonly #names: (typeof directions)["daemon" | "guest"];
  /** Where we read next, and write next. */
  #consumed = 0;
  #produced = 0;
  /** What did not fit, from `#unsentFrom` on. */
  #unsent: Uint8Array[] = [];
  #unsentFrom = 0;
  /** What was read is told at the end of the turn. */
  #unread = false;
  #placed = false;
  #begun = false;
  #paused = false;
  #notifying = false;
  #closed = false;

  /** Neither reads nor writes before `begin`. Whoever owns the channel calls `look` for its events. */
  constructor(page: RingPage, channel: EventChannel, role: keyof typeof directions) {
    this.#page = page;
    this.#channel = channel;
    this.#names = directions[role];
  }

  /** Goes on from the indexes in the page. */
  begin(): void {
    if (!this.#placed) {
      this.#consumed = this.#page.get(`${this.#names.in}_cons`);
      this.#produced = this.#page.get(`${this.#names.out}_prod`);
    }
    this.#page.set(`${this.#names.in}_cons`, this.#consumed);
    this.#begun = true;
    this.look();
  }

  /** It will begin where another transport of this end was. How much of what that sent the page has, the page knows. */
  place({ consumed, sent }: RingPosition): void {
    const { out } = this.#names;
    this.#placed = true;
    this.#consumed = consumed;
    this.#produced = this.#page.get(`${out}_prod`);
    if (sent === undefined) return;
    const has = (this.#produced - sent.start) >>> 0;
    if (has > sent.bytes.length) this.#impossible(`${out}_prod`);
    else if (has < sent.bytes.length) this.#unsent.push(sent.bytes.subarray(has));
  }

  /** Where it has read to, and written to. */
  get consumed(): number {
    return this.#consumed;
  }

  get produced(): number {
    return this.#produced;
  }

  get writable(): boolean {
    return this.#unsent.length === 0;
  }

  /** What was sent and does not lie in the page yet. */
  get unsent(): Uint8Array {
    return Buffer.concat(this.#unsent).subarray(this.#unsentFrom);
  }

  send(bytes: Uint8Array): void {
    if (this.#closed || bytes.length === 0) return;
    this.#unsent.push(bytes);
    if (this.#unsent.length === 1) this.#produce();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#consume();
  }

  /** The page changed, or may have. */
  look(): void {
    const waited = !this.writable;
    if (waited) this.#produce();
    if (!this.#closed && waited && this.writable) this.ondrain?.();
    this.#consume();
  }

  close(reason?: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#unsent = [];
    queueMicrotask(() => this.onclose?.(reason));
  }

  #consume(): void {
    if (!this.#begun || this.#closed || this.#paused) return;
    const { in: name } = this.#names;
    const length = (this.#page.get(`${name}_prod`) - this.#consumed) >>> 0;
    if (length > XENSTORE_RING_SIZE) this.#impossible(`${name}_prod`);
    if (length === 0 || this.#closed) return;
    const bytes = Buffer.allocUnsafe(length);
    const from = this.#consumed % XENSTORE_RING_SIZE;
    const first = Math.min(length, XENSTORE_RING_SIZE - from);
    const start = XenStoreInterface[name];
    bytes.set(this.#page.bytes.subarray(start + from, start + from + first));
    bytes.set(this.#page.bytes.subarray(start, start + length - first), first);
    this.#consumed = (this.#consumed + length) >>> 0;
    this.#unread = true;
    this.onmessage?.(bytes);
    this.#notifySoon();
  }

  /** As much as has room. */
  #produce(): void {
    if (!this.#begun) return;
    const { out: name } = this.#names;
    const used = (this.#produced - this.#page.get(`${name}_cons`)) >>> 0;
    if (used > XENSTORE_RING_SIZE) this.#impossible(`${name}_cons`);
    if (this.#closed) return;
    let room = XENSTORE_RING_SIZE - used;
    const start = XenStoreInterface[name];
    let sent = 0;
    while (room > 0 && sent < this.#unsent.length) {
      const bytes = this.#unsent[sent]!;
      const at = this.#produced % XENSTORE_RING_SIZE;
      const end = Math.min(bytes.length, this.#unsentFrom + room);
      const length = Math.min(end - this.#unsentFrom, XENSTORE_RING_SIZE - at);
      const piece = bytes.subarray(this.#unsentFrom, this.#unsentFrom + length);
      this.#page.bytes.set(piece, start + at);
      room -= length;
      this.#produced = (this.#produced + length) >>> 0;
      this.#unsentFrom += length;
      if (this.#unsentFrom < bytes.length) continue;
      this.#unsentFrom = 0;
      sent++;
    }
    if (sent > 0) this.#unsent.splice(0, sent);
    if (room === XENSTORE_RING_SIZE - used) return;
    this.#page.set(`${name}_prod`, this.#produced);
    this.#notifySoon();
  }

  /** Once for all that this turn read and wrote: an answer also says that there is room again. */
  #notifySoon(): void {
    if (this.#notifying) return;
    this.#notifying = true;
    queueMicrotask(() => {
      this.#notifying = false;
      if (this.#unread && !this.#closed) {
        this.#unread = false;
        this.onread?.();
        this.#page.set(`${this.#names.in}_cons`, this.#consumed);
      }
      this.#channel.notify();
    });
  }

  #impossible(index: string): void {
    this.close(new XenError("ERANGE", `${index} of a xenstore ring is impossible`));
  }
}
