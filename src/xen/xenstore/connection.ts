/**
 * A session over a transport: requests in, answers and events out.
 *
 * Invariant: a client that does not read has its own requests left waiting, and past `abandonedBytes` of events is
 * disconnected; nobody else notices. A client that breaks the framing is disconnected, with all that it held.
 */
import {
  encodeXenStoreMessage,
  encodeXenStoreStrings,
  XENSTORE_PAYLOAD_MAX,
  type XenStoreMessage,
  XenStoreParser,
  XS_ERROR,
  XS_WATCH_EVENT,
} from "../../wire/xenstore.ts";
import { XenError } from "../domain.ts";
import { answerRequest } from "./requests.ts";
import { Session, type SessionOwner } from "./session.ts";
import type { XenStoreState } from "./state.ts";
import type { XenStoreTransport } from "./transport.ts";

export class Connection implements SessionOwner {
  /** Called once, when the connection is over, with the reason where it was not meant to be. */
  onend: ((reason: Error | undefined) => void) | undefined;
  readonly #transport: XenStoreTransport;
  readonly #session: Session;
  readonly #parser = new XenStoreParser();
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  /** Events in the queue, so that none is there twice. */
  readonly #queuedEvents = new Set<string>();
  #flushing = false;
  #stalled = false;
  #ended = false;

  constructor(state: XenStoreState, domid: number, transport: XenStoreTransport) {
    this.#transport = transport;
    this.#session = new Session(state, domid, this);
    transport.onmessage = (bytes) => this.#receive(bytes);
    transport.ondrain = () => this.#flush();
    transport.onclose = (reason) => this.close(reason);
  }

  get domid(): number {
    return this.#session.subject.domid;
  }

  deliver(path: string, token: string): void {
    const key = `${path}\0${token}`;
    if (this.#ended || this.#queuedEvents.has(key)) return;
    const payload = encodeXenStoreStrings([path, token]);
    // A token is as long as its request let it be; with a longer path the event has no room (XSA-324).
    if (payload.length > XENSTORE_PAYLOAD_MAX) return;
    // Domains coming and going are counted, so those events stay as many as they are.
    if (!path.startsWith("@")) this.#queuedEvents.add(key);
    this.#send({ type: XS_WATCH_EVENT, requestId: 0, transactionId: 0, payload });
    if (this.#queuedBytes > this.#session.state.limits.abandonedBytes) {
      this.close(new XenError("ENOBUFS", `domain ${this.domid} does not read its watch events`));
    }
  }

  ended(): void {
    this.close();
  }

  /** Idempotent. */
  close(reason?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#session.end(true);
    this.#queue = [];
    this.#queuedEvents.clear();
    this.#transport.close();
    this.onend?.(reason);
  }

  #receive(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    this.#work();
  }

  #work(): void {
    while (!this.#ended && !this.#stalled) {
      const message = this.#parser.next();
      if (message === undefined) break;
      this.#answer(message);
      if (this.#queuedBytes >= this.#session.state.limits.queuedBytes) this.#stall();
    }
    if (this.#parser.broken) {
      this.close(new XenError("EPROTO", `domain ${this.domid} sent a message that is too long`));
    }
  }

  #answer(message: XenStoreMessage): void {
    const answer = answerRequest(this.#session, message);
    const { requestId, transactionId } = message;
    if (typeof answer === "string") {
      const payload = encodeXenStoreStrings([answer]);
      this.#send({ type: XS_ERROR, requestId, transactionId, payload });
      return;
    }
    const payload = answer instanceof Uint8Array ? answer : answer.payload;
    this.#send({ type: message.type, requestId, transactionId, payload });
    if (!(answer instanceof Uint8Array)) answer.afterwards();
  }

  #stall(): void {
    this.#stalled = true;
    this.#transport.pause();
  }

  #send(message: XenStoreMessage): void {
    if (this.#ended) return;
    const bytes = encodeXenStoreMessage(message);
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length;
    if (this.#flushing) return;
    this.#flushing = true;
    // Once for all that this turn brings, so that equal events meet in the queue.
    queueMicrotask(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#ended || !this.#transport.writable) return;
    if (this.#queue.length > 0) {
      const bytes = this.#queue.length === 1 ? this.#queue[0]! : Buffer.concat(this.#queue);
      this.#queue = [];
      this.#queuedBytes = 0;
      this.#queuedEvents.clear();
      this.#transport.send(bytes);
    }
    if (this.#stalled && this.#transport.writable) {
      this.#stalled = false;
      this.#transport.resume();
      this.#work();
    }
  }
}
