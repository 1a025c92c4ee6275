/**
 * The xenstore wire protocol: <xen/io/xs_wire.h> and docs/misc/xenstore.txt. Constants keep the header's spelling.
 *
 * Invariant: nothing a peer sends is believed before it is checked. A length above XENSTORE_PAYLOAD_MAX breaks the
 * parser for good, and no byte after it is looked at (XSA-420); lengths are unsigned.
 */

/** struct xsd_sockmsg: type, req_id, tx_id, len; four little-endian 32-bit words, on the machines we run on. */
export const XENSTORE_HEADER_SIZE = 16;
/** Bytes after the header. A peer that sends more has lost its place in the stream. */
export const XENSTORE_PAYLOAD_MAX = 4096;
/** Characters of a path that begins with "/". */
export const XENSTORE_ABS_PATH_MAX = 3072;
/** Characters of a path below the directory of a domain. */
export const XENSTORE_REL_PATH_MAX = 2048;

export const XS_CONTROL = 0;
export const XS_DIRECTORY = 1;
export const XS_READ = 2;
export const XS_GET_PERMS = 3;
export const XS_WATCH = 4;
export const XS_UNWATCH = 5;
export const XS_TRANSACTION_START = 6;
export const XS_TRANSACTION_END = 7;
export const XS_INTRODUCE = 8;
export const XS_RELEASE = 9;
export const XS_GET_DOMAIN_PATH = 10;
export const XS_WRITE = 11;
export const XS_MKDIR = 12;
export const XS_RM = 13;
export const XS_SET_PERMS = 14;
export const XS_WATCH_EVENT = 15;
export const XS_ERROR = 16;
export const XS_IS_DOMAIN_INTRODUCED = 17;
export const XS_RESUME = 18;
export const XS_SET_TARGET = 19;
export const XS_RESET_WATCHES = 21;
export const XS_DIRECTORY_PART = 22;
export const XS_GET_FEATURE = 23;
export const XS_SET_FEATURE = 24;
export const XS_GET_QUOTA = 25;
export const XS_SET_QUOTA = 26;

/** A client may have its ring begun anew. */
export const XENSTORE_SERVER_FEATURE_RECONNECTION = 1;
/** The page of a ring has a field for the error that ended it. */
export const XENSTORE_SERVER_FEATURE_ERROR = 2;
/** XS_WATCH takes a depth. */
export const XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4;
/** What our daemon can do. */
export const XENSTORE_SERVER_FEATURES: number =
  XENSTORE_SERVER_FEATURE_ERROR | XENSTORE_SERVER_FEATURE_WATCHDEPTH;

/** The errors that may cross the wire (xsd_errors): an XS_ERROR carries the name and a NUL. */
export const XSD_ERRORS = [
  "EINVAL",
  "EACCES",
  "EEXIST",
  "EISDIR",
  "ENOENT",
  "ENOMEM",
  "ENOSPC",
  "EIO",
  "ENOTEMPTY",
  "ENOSYS",
  "EROFS",
  "EBUSY",
  "EAGAIN",
  "EISCONN",
  "E2BIG",
  "EPERM",
] as const;
export type XsdError = (typeof XSD_ERRORS)[number];

export interface XenStoreMessage {
  /** XS_*, or anything else that a peer made up. */
  readonly type: number;
  /** Chosen by the client, repeated by the answer. */
  readonly requestId: number;
  /** 0 outside of transactions. */
  readonly transactionId: number;
  /** At most XENSTORE_PAYLOAD_MAX bytes; a view of what was pushed into the parser. */
  readonly payload: Uint8Array;
}

/** The bytes of a message. The payload must have at most XENSTORE_PAYLOAD_MAX bytes. */
export function encodeXenStoreMessage(message: XenStoreMessage): Buffer<ArrayBuffer> {
  const { type, requestId, transactionId, payload } = message;
  const bytes = Buffer.allocUnsafe(XENSTORE_HEADER_SIZE + payload.length);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(requestId, 4);
  bytes.writeUInt32LE(transactionId, 8);
  bytes.writeUInt32LE(payload.length, 12);
  bytes.set(payload, XENSTORE_HEADER_SIZE);
  return bytes;
}

/** Cuts a stream into messages, however it arrives in pieces. */
export class XenStoreParser {
  /** Taken up to `#at`. */
  #bytes: Buffer = Buffer.alloc(0);
  #at = 0;
  #broken = false;

  /** Set by a message that is too long: the stream has no next message any more. */
  get broken(): boolean {
    return this.#broken;
  }

  /** Bytes that were pushed and are not part of a message yet taken. */
  get buffered(): number {
    return this.#bytes.length - this.#at;
  }

  /** Takes `chunk` over: it must not change afterwards. */
  push(chunk: Uint8Array): void {
    if (this.#broken) return;
    this.#bytes = this.buffered === 0 ? asBuffer(chunk) : Buffer.concat([this.rest, chunk]);
    this.#at = 0;
  }

  /** The bytes that are buffered. */
  get rest(): Uint8Array {
    return this.#bytes.subarray(this.#at);
  }

  /** The next message, once it is whole. */
  next(): XenStoreMessage | undefined {
    const bytes = this.#bytes;
    const at = this.#at;
    const start = at + XENSTORE_HEADER_SIZE;
    if (bytes.length < start) return undefined;
    const length = bytes.readUInt32LE(at + 12);
    if (length > XENSTORE_PAYLOAD_MAX) {
      this.#broken = true;
      this.#at = bytes.length;
      return undefined;
    }
    const end = start + length;
    if (bytes.length < end) return undefined;
    this.#at = end;
    return {
      type: bytes.readUInt32LE(at),
      requestId: bytes.readUInt32LE(at + 4),
      transactionId: bytes.readUInt32LE(at + 8),
      payload: bytes.subarray(start, end),
    };
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return bytes instanceof Buffer
    ? bytes
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** Strings of the protocol are bytes: every byte is one character, 0 to 255. */
export function decodeXenStoreText(bytes: Uint8Array): string {
  return asBuffer(bytes).toString("latin1");
}

/** The strings, each with the NUL that ends it. */
export function encodeXenStoreStrings(strings: readonly string[]): Uint8Array {
  return Buffer.from(strings.map((text) => `${text}\0`).join(""), "latin1");
}

/** The strings that a NUL ends; what comes after the last NUL is left out, as the C daemon does. */
export function decodeXenStoreStrings(payload: Uint8Array): string[] {
  const bytes = asBuffer(payload);
  const strings: string[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = bytes.indexOf(0, at);
    if (end < 0) break;
    // Each by itself: a part of a longer string would keep that in memory.
    strings.push(bytes.toString("latin1", at, end));
    at = end + 1;
  }
  return strings;
}
