/**
 * What waits for one client to read: answers and watch events, in order.
 *
 * Invariant: answers are as many as the client was allowed to ask for, and events have a bound of their own: above it,
 * those of the watch that has the most become one of the watched path, which says that anything there may have changed.
 * So somebody who changes nodes without pause makes others look less often, not us remember more (XSA-349, XSA-326).
 */
import {
  encodeXenStoreMessage,
  encodeXenStoreStrings,
  XENSTORE_PAYLOAD_MAX,
  type XenStoreMessage,
  XS_WATCH_EVENT,
} from "../../wire/xenstore.ts";
import { relativeTo, type Watch } from "./watches.ts";

interface Waiting {
  readonly bytes: Uint8Array;
  /** Of an event. */
  readonly watch: Watch | undefined;
  readonly path: string;
}

/** The events of one watch that wait. */
interface WatchEvents {
  count: number;
  bytes: number;
  /** So that none is there twice. */
  readonly paths: Set<string>;
  /** One of the watched path stands for all, those to come too. */
  whole: boolean;
}

export class Outbox {
  readonly #maxEventBytes: number;
  #queue: Waiting[] = [];
  #bytes = 0;
  #eventBytes = 0;
  #answers = 0;
  readonly #events = new Map<Watch, WatchEvents>();

  constructor(maxEventBytes: number) {
    this.#maxEventBytes = maxEventBytes;
  }

  /** Of all that waits. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Answers that wait. */
  get answers(): number {
    return this.#answers;
  }

  /** Events wait. */
  get hasEvents(): boolean {
    return this.#eventBytes > 0;
  }

  /** One event for each watch is more than events may take. */
  get overfull(): boolean {
    return this.#eventBytes > this.#maxEventBytes;
  }

  answer(message: XenStoreMessage): void {
    this.#answers++;
    this.#push({ bytes: encodeXenStoreMessage(message), watch: undefined, path: "" });
  }

  event(watch: Watch, path: string): void {
    const waiting = this.#events.get(watch);
    if (waiting?.whole === true || waiting?.paths.has(path) === true) return;
    this.#pushEvent(watch, path);
    while (this.overfull) {
      const longest = this.#longest();
      if (longest === undefined) return;
      this.#summarize(...longest);
    }
  }

  /** The next whole messages, of `size` bytes or a message more; undefined where nothing waits. */
  take(size: number): Uint8Array | undefined {
    if (this.#queue.length === 1) {
      const only = this.#queue.pop()!;
      this.#forget(only);
      return only.bytes;
    }
    let count = 0;
    for (let bytes = 0; count < this.#queue.length && bytes < size; count++) {
      bytes += this.#queue[count]!.bytes.length;
    }
    const taken = this.#queue.splice(0, count);
    for (const waiting of taken) this.#forget(waiting);
    if (taken.length <= 1) return taken[0]?.bytes;
    return Buffer.concat(taken.map(({ bytes }) => bytes));
  }

  clear(): void {
    this.#queue = [];
    this.#events.clear();
    this.#bytes = 0;
    this.#answers = 0;
    this.#eventBytes = 0;
  }

  #pushEvent(watch: Watch, path: string): void {
    const payload = encodeXenStoreStrings([relativeTo(watch, path), watch.token]);
    // A token is as long as its request let it be; with a longer path the event has no room (XSA-324).
    if (payload.length > XENSTORE_PAYLOAD_MAX) return;
    const message = { type: XS_WATCH_EVENT, requestId: 0, transactionId: 0, payload };
    const bytes = encodeXenStoreMessage(message);
    let waiting = this.#events.get(watch);
    if (waiting === undefined) {
      waiting = { count: 0, bytes: 0, paths: new Set(), whole: false };
      this.#events.set(watch, waiting);
    }
    // Domains coming and going are counted, so those events stay as many as they are.
    if (!path.startsWith("@")) waiting.paths.add(path);
    waiting.count++;
    waiting.bytes += bytes.length;
    this.#eventBytes += bytes.length;
    this.#push({ bytes, watch, path });
  }

  #push(waiting: Waiting): void {
    this.#queue.push(waiting);
    this.#bytes += waiting.bytes.length;
  }

  #forget({ bytes, watch, path }: Waiting): void {
    this.#bytes -= bytes.length;
    if (watch === undefined) {
      this.#answers--;
      return;
    }
    this.#eventBytes -= bytes.length;
    const waiting = this.#events.get(watch)!;
    waiting.count--;
    waiting.bytes -= bytes.length;
    waiting.paths.delete(path);
    if (waiting.count === 0) this.#events.delete(watch);
  }

  /** The watch with the most bytes of several events. */
  #longest(): [Watch, WatchEvents] | undefined {
    let found: [Watch, WatchEvents] | undefined;
    for (const entry of this.#events) {
      const [, { count, bytes }] = entry;
      if (count > 1 && bytes > (found?.[1].bytes ?? 0)) found = entry;
    }
    return found;
  }

  #summarize(watch: Watch, { bytes }: WatchEvents): void {
    this.#queue = this.#queue.filter((waiting) => waiting.watch !== watch);
    this.#bytes -= bytes;
    this.#eventBytes -= bytes;
    this.#events.delete(watch);
    this.#pushEvent(watch, watch.path);
    const whole = this.#events.get(watch);
    if (whole !== undefined) whole.whole = true;
  }
}
