/** A client of the wire alone, so that tests can say what a well-behaved one would not. */
import {
  decodeXenStoreText,
  encodeXenStoreMessage,
  XenStoreParser,
  XS_ERROR,
  XS_WATCH_EVENT,
} from "../../../src/wire/xenstore.ts";
import type { XenStoreTransport } from "../../../src/xen/xenstore/transport.ts";

export class RawClient {
  readonly transport: XenStoreTransport;
  /** "PATH TOKEN" of each event, in order. */
  readonly events: string[] = [];
  readonly closed: Promise<Error | undefined>;
  readonly #parser = new XenStoreParser();
  #answered: ((answer: string) => void)[] = [];

  constructor(transport: XenStoreTransport) {
    this.transport = transport;
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    this.closed = promise;
    transport.onclose = resolve;
    transport.onmessage = (bytes) => this.#receive(bytes);
  }

  #receive(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    for (let next = this.#parser.next(); next !== undefined; next = this.#parser.next()) {
      const text = decodeXenStoreText(next.payload);
      if (next.type === XS_WATCH_EVENT) this.events.push(text.replaceAll("\0", " ").trim());
      else if (next.type === XS_ERROR) this.#answered.shift()?.(text.slice(0, -1));
      else this.#answered.shift()?.(text.replace(/\0$/, "").replaceAll("\0", ","));
    }
  }

  /** Sends `text` as the payload, byte for byte; "\0" is not added. Resolves with the error's name, or the answer's
   * strings with commas between. */
  raw(type: number, text: string, transactionId = 0): Promise<string> {
    const { promise, resolve } = Promise.withResolvers<string>();
    this.#answered.push(resolve);
    const payload = Buffer.from(text, "latin1");
    this.transport.send(encodeXenStoreMessage({ type, requestId: 1, transactionId, payload }));
    return promise;
  }

  /** Strings, each ended by a NUL. */
  ask(type: number, strings: readonly string[], transactionId = 0): Promise<string> {
    return this.raw(type, strings.map((text) => `${text}\0`).join(""), transactionId);
  }

  /** The events since the last call. */
  takeEvents(): string[] {
    return this.events.splice(0);
  }
}
