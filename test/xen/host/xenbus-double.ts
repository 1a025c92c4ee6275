/**
 * A double of Linux's /dev/xen/xenbus (xenbus_dev_frontend.c of Linux 6.1): files of one connection to a xenstore.
 *
 * As there, a watch that is begun or ended in a file in which another request is unanswered is the end of it all: the
 * kernel waits for the xenstore with the file locked, and cannot take an answer to that file before.
 */
import type { EventDescriptor } from "../../../src/io/poller.ts";
import {
  decodeXenStoreStrings,
  encodeXenStoreMessage,
  type XenStoreMessage,
  XenStoreParser,
  XS_UNWATCH,
  XS_WATCH,
  XS_WATCH_EVENT,
} from "../../../src/wire/xenstore.ts";
import type { XenStoreTransport } from "../../../src/xen/xenstore/transport.ts";

const BUFFER_BYTES = 4096;

interface XenbusFile {
  readonly answers: Uint8Array[];
  readonly event: EventDescriptor;
}

export class XenbusDouble {
  readonly #store: XenStoreTransport;
  readonly #unanswered = new Map<number, XenbusFile>();
  /** Requests of these are answered within the write, as far as anybody can tell. */
  readonly #watching = new Map<number, XenbusFile>();
  /** By token. */
  readonly #watches = new Map<string, XenbusFile>();
  #stuck = false;

  constructor(store: XenStoreTransport) {
    this.#store = store;
    const parser = new XenStoreParser();
    store.onmessage = (bytes) => {
      parser.push(bytes);
      for (let next = parser.next(); next !== undefined; next = parser.next()) this.#deliver(next);
    };
  }

  /** False where the message is too long. */
  write(file: XenbusFile, bytes: Uint8Array): boolean {
    if (bytes.length > BUFFER_BYTES) return false;
    const parser = new XenStoreParser();
    parser.push(bytes);
    const { type, requestId, payload } = parser.next()!;
    if (type === XS_WATCH || type === XS_UNWATCH) {
      this.#stuck ||= [...this.#unanswered.values()].includes(file);
      this.#watching.set(requestId, file);
      if (type === XS_WATCH) this.#watches.set(decodeXenStoreStrings(payload)[1]!, file);
    } else this.#unanswered.set(requestId, file);
    this.#store.send(bytes);
    return true;
  }

  #deliver(message: XenStoreMessage): void {
    if (this.#stuck) return;
    const { type, requestId, payload } = message;
    const requests = this.#watching.has(requestId) ? this.#watching : this.#unanswered;
    const file =
      type === XS_WATCH_EVENT
        ? this.#watches.get(decodeXenStoreStrings(payload)[1]!)
        : requests.get(requestId);
    if (type !== XS_WATCH_EVENT) requests.delete(requestId);
    file?.answers.push(encodeXenStoreMessage(message));
    file?.event.signal();
  }
}
