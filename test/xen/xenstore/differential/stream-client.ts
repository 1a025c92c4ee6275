/** A client that sends many requests before it reads: what came back is kept in the order in which it came. */
import {
  decodeXenStoreText,
  encodeXenStoreMessage,
  XenStoreParser,
  XS_ERROR,
  XS_READ,
  XS_WATCH_EVENT,
} from "../../../../src/wire/xenstore.ts";
import type { XenStoreTransport } from "../../../../src/xen/xenstore/transport.ts";

export interface Request {
  readonly type: number;
  /** Byte for byte. */
  readonly payload: string;
  readonly transactionId: number;
}

export interface Answer {
  /** The name of an error; undefined for none. */
  readonly error: string | undefined;
  readonly type: number;
  readonly text: string;
  readonly requestId: number;
  readonly transactionId: number;
}

/** An event, with how many answers came before it since the last `take`. */
export interface Event {
  readonly text: string;
  readonly answersBefore: number;
}

export class StreamClient {
  readonly closed: Promise<void>;
  readonly #transport: XenStoreTransport;
  readonly #parser = new XenStoreParser();
  #answers: Answer[] = [];
  #events: Event[] = [];
  #wanted = 0;
  #arrived: (() => void) | undefined;
  #ended = false;

  constructor(transport: XenStoreTransport) {
    this.#transport = transport;
    transport.onmessage = (bytes) => this.#receive(bytes);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    transport.onclose = () => {
      this.#ended = true;
      this.#arrived?.();
      resolve();
    };
  }

  send(requests: readonly Request[]): void {
    const messages = requests.map(({ type, payload, transactionId }, requestId) =>
      encodeXenStoreMessage({
        type,
        requestId,
        transactionId,
        payload: Buffer.from(payload, "latin1"),
      }),
    );
    this.#transport.send(Buffer.concat(messages));
  }

  /** Of a message with a payload of `length` bytes, which is not sent. */
  sendHeader(length: number): void {
    const empty = new Uint8Array(0);
    const header = encodeXenStoreMessage({
      type: XS_READ,
      requestId: 0,
      transactionId: 0,
      payload: empty,
    });
    header.writeUInt32LE(length, header.length - 4);
    this.#transport.send(header);
  }

  /** Waits for so many answers and gives them with all events that came up to the last. Rejects when the connection
   * ends before. */
  async take(count: number): Promise<{ answers: Answer[]; events: Event[] }> {
    if (this.#answers.length < count) {
      this.#wanted = count;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#arrived = resolve;
      if (this.#ended) resolve();
      await promise;
      this.#arrived = undefined;
    }
    if (this.#answers.length < count) throw new Error("the connection ended");
    const taken = { answers: this.#answers, events: this.#events };
    this.#answers = [];
    this.#events = [];
    return taken;
  }

  close(): void {
    this.#transport.close();
  }

  #receive(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    for (let next = this.#parser.next(); next !== undefined; next = this.#parser.next()) {
      const { type, requestId, transactionId } = next;
      const text = decodeXenStoreText(next.payload);
      if (type === XS_WATCH_EVENT) {
        this.#events.push({ text, answersBefore: this.#answers.length });
      } else {
        const error = type === XS_ERROR ? text.slice(0, -1) : undefined;
        this.#answers.push({ error, type, text, requestId, transactionId });
      }
    }
    if (this.#answers.length >= this.#wanted) this.#arrived?.();
  }
}
