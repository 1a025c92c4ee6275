/**
 * The NBD protocol's bytes, as proto.md of the NetworkBlockDevice project gives them: newstyle handshake, options and
 * their replies, transmission headers, simple and structured replies. Names are the protocol's own; integers are
 * big-endian.
 *
 * Pure: nothing here reads a socket or trusts a length; callers pass memory that holds what they ask to decode.
 * 64-bit offsets become Numbers: one of 2^53 or more loses low bits but stays above every size we can have, so that
 * the range check refuses it. Cookies stay two u32 halves, because they are only echoed.
 */

/** "NBDMAGIC", as two u32. */
export const NBDMAGIC_HIGH = 0x4e42444d;
export const NBDMAGIC_LOW = 0x41474943;
/** "IHAVEOPT". */
export const IHAVEOPT_HIGH = 0x49484156;
export const IHAVEOPT_LOW = 0x454f5054;
/** Of every option reply: 0x3e889045565a9. */
export const NBD_REP_MAGIC_HIGH = 0x0003e889;
export const NBD_REP_MAGIC_LOW = 0x045565a9;
export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** Handshake flags of the server, and those the client answers with. */
export const NBD_FLAG_FIXED_NEWSTYLE = 1;
export const NBD_FLAG_NO_ZEROES = 2;

export const NBD_OPT_EXPORT_NAME = 1;
export const NBD_OPT_ABORT = 2;
export const NBD_OPT_LIST = 3;
export const NBD_OPT_STARTTLS = 5;
export const NBD_OPT_INFO = 6;
export const NBD_OPT_GO = 7;
export const NBD_OPT_STRUCTURED_REPLY = 8;
export const NBD_OPT_LIST_META_CONTEXT = 9;
export const NBD_OPT_SET_META_CONTEXT = 10;

export const NBD_REP_ACK = 1;
export const NBD_REP_SERVER = 2;
export const NBD_REP_INFO = 3;
export const NBD_REP_META_CONTEXT = 4;
export const NBD_REP_ERR_UNSUP = 0x80000001;
export const NBD_REP_ERR_POLICY = 0x80000002;
export const NBD_REP_ERR_INVALID = 0x80000003;
export const NBD_REP_ERR_PLATFORM = 0x80000004;
export const NBD_REP_ERR_TLS_REQD = 0x80000005;
export const NBD_REP_ERR_UNKNOWN = 0x80000006;
export const NBD_REP_ERR_SHUTDOWN = 0x80000007;
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008;
export const NBD_REP_ERR_TOO_BIG = 0x80000009;

export const NBD_INFO_EXPORT = 0;
export const NBD_INFO_NAME = 1;
export const NBD_INFO_DESCRIPTION = 2;
export const NBD_INFO_BLOCK_SIZE = 3;

/** Transmission flags. */
export const NBD_FLAG_HAS_FLAGS = 0x1;
export const NBD_FLAG_READ_ONLY = 0x2;
export const NBD_FLAG_SEND_FLUSH = 0x4;
export const NBD_FLAG_SEND_FUA = 0x8;
export const NBD_FLAG_ROTATIONAL = 0x10;
export const NBD_FLAG_SEND_TRIM = 0x20;
export const NBD_FLAG_SEND_WRITE_ZEROES = 0x40;
export const NBD_FLAG_SEND_DF = 0x80;
export const NBD_FLAG_CAN_MULTI_CONN = 0x100;
export const NBD_FLAG_SEND_CACHE = 0x400;
export const NBD_FLAG_SEND_FAST_ZERO = 0x800;

export const NBD_CMD_READ = 0;
export const NBD_CMD_WRITE = 1;
export const NBD_CMD_DISC = 2;
export const NBD_CMD_FLUSH = 3;
export const NBD_CMD_TRIM = 4;
export const NBD_CMD_CACHE = 5;
export const NBD_CMD_WRITE_ZEROES = 6;
export const NBD_CMD_BLOCK_STATUS = 7;

export const NBD_CMD_FLAG_FUA = 0x1;
export const NBD_CMD_FLAG_NO_HOLE = 0x2;
export const NBD_CMD_FLAG_DF = 0x4;
export const NBD_CMD_FLAG_REQ_ONE = 0x8;
export const NBD_CMD_FLAG_FAST_ZERO = 0x10;

export const NBD_REPLY_FLAG_DONE = 1;
export const NBD_REPLY_TYPE_NONE = 0;
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5;
/** Bit of every error chunk's type. */
export const NBD_REPLY_TYPE_ERROR_BIT = 0x8000;
export const NBD_REPLY_TYPE_ERROR = 0x8001;
export const NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002;

/** Flags of a base:allocation extent. */
export const NBD_STATE_HOLE = 1;
export const NBD_STATE_ZERO = 2;
/** The one metadata context that both our sides speak. */
export const BASE_ALLOCATION = "base:allocation";

export const NBD_EPERM = 1;
export const NBD_EIO = 5;
export const NBD_ENOMEM = 12;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOTSUP = 95;
export const NBD_ESHUTDOWN = 108;

/** The protocol's limit of a name or a metadata query. */
export const NBD_MAX_STRING = 4096;
/** The payload every peer must take, and the most that a careful one sends. */
export const NBD_MAX_PAYLOAD = 0x2000000;
export const NBD_DEFAULT_PORT = 10809;

/** Bytes of each fixed part. */
export const GREETING_LENGTH = 18;
export const CLIENT_FLAGS_LENGTH = 4;
export const OPTION_HEADER_LENGTH = 16;
export const OPTION_REPLY_LENGTH = 20;
/** Zeroes after the answer to NBD_OPT_EXPORT_NAME, unless both sides said NO_ZEROES. */
export const EXPORT_NAME_PADDING = 124;
export const REQUEST_LENGTH = 28;
export const SIMPLE_REPLY_LENGTH = 16;
export const CHUNK_HEADER_LENGTH = 20;
/** A chunk header and the offset that begins an OFFSET_DATA payload. */
export const DATA_CHUNK_HEADER_LENGTH = 28;
export const EXTENT_LENGTH = 8;

const TWO_32 = 2 ** 32;

export function getU16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

export function getU32(bytes: Uint8Array, at: number): number {
  return (
    ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
  );
}

/** At 2^53 and above the low bits are lost; the value stays above every safe integer. */
export function getU64(bytes: Uint8Array, at: number): number {
  return getU32(bytes, at) * TWO_32 + getU32(bytes, at + 4);
}

export function putU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

/** `value` is a safe integer. */
export function putU64(bytes: Uint8Array, at: number, value: number): void {
  putU32(bytes, at, Math.floor(value / TWO_32));
  putU32(bytes, at + 4, value >>> 0);
}

/** A transmission request; one object is decoded into again and again. */
export class NbdRequest {
  /** NBD_CMD_FLAG_*. */
  flags = 0;
  /** NBD_CMD_*. */
  type = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** Bytes. */
  offset = 0;
  /** Bytes, up to 2^32 - 1. */
  length = 0;
}

/** Reads REQUEST_LENGTH bytes; false where the magic is wrong, and the stream is lost. */
export function decodeRequest(bytes: Uint8Array, at: number, request: NbdRequest): boolean {
  if (getU32(bytes, at) !== NBD_REQUEST_MAGIC) return false;
  request.flags = getU16(bytes, at + 4);
  request.type = getU16(bytes, at + 6);
  request.cookieHigh = getU32(bytes, at + 8);
  request.cookieLow = getU32(bytes, at + 12);
  request.offset = getU64(bytes, at + 16);
  request.length = getU32(bytes, at + 24);
  return true;
}

export function encodeRequest(bytes: Uint8Array, at: number, request: NbdRequest): void {
  putU32(bytes, at, NBD_REQUEST_MAGIC);
  putU16(bytes, at + 4, request.flags);
  putU16(bytes, at + 6, request.type);
  putU32(bytes, at + 8, request.cookieHigh);
  putU32(bytes, at + 12, request.cookieLow);
  putU64(bytes, at + 16, request.offset);
  putU32(bytes, at + 24, request.length);
}

/** The header of a simple reply or of a chunk; one object is decoded into again and again. */
export class NbdReply {
  structured = false;
  /** NBD_E*, of a simple reply. */
  error = 0;
  /** NBD_REPLY_FLAG_*, of a chunk. */
  flags = 0;
  /** NBD_REPLY_TYPE_*, of a chunk. */
  type = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** Bytes of payload, of a chunk. */
  length = 0;
}

/** Bytes of the reply header that starts with these four; 0 where the magic is wrong. */
export function replyHeaderLength(bytes: Uint8Array, at: number): number {
  const magic = getU32(bytes, at);
  if (magic === NBD_SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY_LENGTH;
  return magic === NBD_STRUCTURED_REPLY_MAGIC ? CHUNK_HEADER_LENGTH : 0;
}

/** Reads as many bytes as `replyHeaderLength` says. */
export function decodeReply(bytes: Uint8Array, at: number, reply: NbdReply): void {
  reply.structured = getU32(bytes, at) === NBD_STRUCTURED_REPLY_MAGIC;
  reply.cookieHigh = getU32(bytes, at + 8);
  reply.cookieLow = getU32(bytes, at + 12);
  if (reply.structured) {
    reply.error = 0;
    reply.flags = getU16(bytes, at + 4);
    reply.type = getU16(bytes, at + 6);
    reply.length = getU32(bytes, at + 16);
  } else {
    reply.error = getU32(bytes, at + 4);
    reply.flags = 0;
    reply.type = 0;
    reply.length = 0;
  }
}

export function encodeSimpleReply(
  bytes: Uint8Array,
  at: number,
  cookieHigh: number,
  cookieLow: number,
  error: number,
): void {
  putU32(bytes, at, NBD_SIMPLE_REPLY_MAGIC);
  putU32(bytes, at + 4, error);
  putU32(bytes, at + 8, cookieHigh);
  putU32(bytes, at + 12, cookieLow);
}

/** `length` counts the payload that follows the CHUNK_HEADER_LENGTH bytes. */
export function encodeChunkHeader(
  bytes: Uint8Array,
  at: number,
  cookieHigh: number,
  cookieLow: number,
  flags: number,
  type: number,
  length: number,
): void {
  putU32(bytes, at, NBD_STRUCTURED_REPLY_MAGIC);
  putU16(bytes, at + 4, flags);
  putU16(bytes, at + 6, type);
  putU32(bytes, at + 8, cookieHigh);
  putU32(bytes, at + 12, cookieLow);
  putU32(bytes, at + 16, length);
}

/** What the server sends first. */
export function encodeGreeting(handshakeFlags: number): Uint8Array {
  const bytes = new Uint8Array(GREETING_LENGTH);
  putU32(bytes, 0, NBDMAGIC_HIGH);
  putU32(bytes, 4, NBDMAGIC_LOW);
  putU32(bytes, 8, IHAVEOPT_HIGH);
  putU32(bytes, 12, IHAVEOPT_LOW);
  putU16(bytes, 16, handshakeFlags);
  return bytes;
}

/** The server's handshake flags; undefined where this is no newstyle NBD server. */
export function decodeGreeting(bytes: Uint8Array): number | undefined {
  const newstyle =
    getU32(bytes, 0) === NBDMAGIC_HIGH &&
    getU32(bytes, 4) === NBDMAGIC_LOW &&
    getU32(bytes, 8) === IHAVEOPT_HIGH &&
    getU32(bytes, 12) === IHAVEOPT_LOW;
  return newstyle ? getU16(bytes, 16) : undefined;
}

export function encodeOption(option: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(OPTION_HEADER_LENGTH + data.length);
  putU32(bytes, 0, IHAVEOPT_HIGH);
  putU32(bytes, 4, IHAVEOPT_LOW);
  putU32(bytes, 8, option);
  putU32(bytes, 12, data.length);
  bytes.set(data, OPTION_HEADER_LENGTH);
  return bytes;
}

/** Reads OPTION_HEADER_LENGTH bytes; undefined where the magic is wrong. */
export function decodeOption(bytes: Uint8Array): { option: number; length: number } | undefined {
  if (getU32(bytes, 0) !== IHAVEOPT_HIGH || getU32(bytes, 4) !== IHAVEOPT_LOW) return undefined;
  return { option: getU32(bytes, 8), length: getU32(bytes, 12) };
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(OPTION_REPLY_LENGTH + data.length);
  putU32(bytes, 0, NBD_REP_MAGIC_HIGH);
  putU32(bytes, 4, NBD_REP_MAGIC_LOW);
  putU32(bytes, 8, option);
  putU32(bytes, 12, type);
  putU32(bytes, 16, data.length);
  bytes.set(data, OPTION_REPLY_LENGTH);
  return bytes;
}

/** Reads OPTION_REPLY_LENGTH bytes; undefined where the magic is wrong. */
export function decodeOptionReply(
  bytes: Uint8Array,
): { option: number; type: number; length: number } | undefined {
  if (getU32(bytes, 0) !== NBD_REP_MAGIC_HIGH || getU32(bytes, 4) !== NBD_REP_MAGIC_LOW) {
    return undefined;
  }
  return { option: getU32(bytes, 8), type: getU32(bytes, 12), length: getU32(bytes, 16) };
}
