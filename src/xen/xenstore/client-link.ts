/**
 * Requests in flight over a transport: many at a time, told apart by their ids.
 *
 * Invariant: the daemon is not believed either: an answer nobody waits for is left out, and one that cannot be read
 * ends the connection. While the transport is not writable, requests wait here.
 */
import {
  decodeXenStoreStrings,
  encodeXenStoreMessage,
  XENSTORE_PAYLOAD_MAX,
  type XenStoreMessage,
  XenStoreParser,
  XS_ERROR,
  XS_WATCH_EVENT,
} from "../../wire/xenstore.ts";
import { XenError } from "../domain.ts";
import type { XenStoreTransport } from "./transport.ts";

interface PendingRequest {
  readonly type: number;
  /** For messages to people. */
  readonly path: string;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: XenError) => void;
}

const meanings: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EAGAIN: "the transaction met a change made by somebody else",
  EEXIST: "is there already",
  EINVAL: "is not valid",
  ENOENT: "there is no such node",
  ENOSPC: "a limit of the xenstore is reached",
  ENOSYS: "this xenstore cannot do that",
  E2BIG: "is too big",
};

export class ClientLink {
  /** Resolves when the connection has ended; with the reason where it was not our doing. */
  readonly closed: Promise<XenError | undefined>;
  readonly #transport: XenStoreTransport;
  readonly #event: (path: string, token: string) => void;
  readonly #parser = new XenStoreParser();
  readonly #pending = new Map<number, PendingRequest>();
  #waiting: Uint8Array[] = [];
  #nextId = 1;
  #end: XenError | undefined;
  readonly #resolveClosed: (reason: XenError | undefined) => void;

  constructor(transport: XenStoreTransport, event: (path: string, token: string) => void) {
    const { promise, resolve } = Promise.withResolvers<XenError | undefined>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    this.#transport = transport;
    this.#event = event;
    transport.onmessage = (bytes) => this.#receive(bytes);
    transport.ondrain = () => this.#sendWaiting();
    transport.onclose = (reason) => {
      const message = "the xenstore closed the connection";
      const cause = reason === undefined ? undefined : { cause: reason };
      this.#fail(new XenError("ECONNRESET", reason?.message ?? message, cause));
    };
  }

  /** Bytes of a request's payload. */
  get maxPayloadBytes(): number {
    return this.#transport.maxPayloadBytes ?? XENSTORE_PAYLOAD_MAX;
  }

  /** The answer's payload. Rejects with XenError and the daemon's code, or EPIPE or ECONNRESET. */
  request(
    type: number,
    payload: Uint8Array,
    transactionId: number,
    path = "",
  ): Promise<Uint8Array> {
    if (this.#end !== undefined) {
      return Promise.reject(new XenError("EPIPE", "the connection to the xenstore has ended"));
    }
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    const requestId = this.#freeId();
    this.#pending.set(requestId, { type, path, resolve, reject });
    this.#waiting.push(encodeXenStoreMessage({ type, requestId, transactionId, payload }));
    this.#sendWaiting();
    return promise;
  }

  /** Idempotent. */
  close(): void {
    if (this.#end !== undefined) return;
    this.#fail(new XenError("EPIPE", "the connection to the xenstore was closed"), true);
    this.#transport.close();
  }

  #freeId(): number {
    while (this.#nextId === 0 || this.#pending.has(this.#nextId)) {
      this.#nextId = (this.#nextId + 1) >>> 0;
    }
    const id = this.#nextId;
    this.#nextId = (id + 1) >>> 0;
    return id;
  }

  #sendWaiting(): void {
    let sent = 0;
    while (sent < this.#waiting.length && this.#transport.writable) {
      this.#transport.send(this.#waiting[sent++]!);
    }
    if (sent > 0) this.#waiting = this.#waiting.slice(sent);
  }

  #receive(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    for (let next = this.#parser.next(); next !== undefined; next = this.#parser.next()) {
      if (next.type === XS_WATCH_EVENT) {
        const [path, token] = decodeXenStoreStrings(next.payload);
        if (path !== undefined && token !== undefined) this.#event(path, token);
      } else this.#answered(next);
    }
    if (this.#parser.broken) this.#garbled();
  }

  #answered({ type, requestId, payload }: XenStoreMessage): void {
    const request = this.#pending.get(requestId);
    if (request === undefined) return;
    this.#pending.delete(requestId);
    if (type === XS_ERROR) {
      const code = decodeXenStoreStrings(payload)[0] ?? "EIO";
      const meaning = meanings[code] ?? code;
      const message = request.path === "" ? `xenstore: ${meaning}` : `${request.path}: ${meaning}`;
      request.reject(new XenError(code, message));
    } else if (type === request.type) request.resolve(Uint8Array.from(payload));
    else {
      request.reject(new XenError("EIO", "the xenstore answered another request"));
      this.#garbled();
    }
  }

  #garbled(): void {
    this.#fail(new XenError("EIO", "the xenstore sends what cannot be read"));
    this.#transport.close();
  }

  #fail(error: XenError, ours = false): void {
    if (this.#end !== undefined) return;
    this.#end = error;
    this.#waiting = [];
    for (const request of this.#pending.values()) request.reject(error);
    this.#pending.clear();
    this.#resolveClosed(ours ? undefined : error);
  }
}
