/**
 * Data of the NBD options and of their replies (proto.md, "Option types" and "Option reply types"): values on one
 * side, bytes on the other.
 *
 * Invariant: a decoder answers undefined for data that is short, long or not text, and never reads past it.
 */
import {
  getU16,
  getU32,
  getU64,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_MAX_STRING,
  putU16,
  putU32,
  putU64,
} from "./nbd.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Data of NBD_OPT_GO and NBD_OPT_INFO. */
export interface GoOption {
  readonly name: string;
  /** NBD_INFO_* that the client would like. */
  readonly requests: readonly number[];
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export interface MetaContextOption {
  readonly name: string;
  readonly queries: readonly string[];
}

export type ExportInfo =
  /** `size` in bytes, 2^53 or more where it does not fit; `flags` are NBD_FLAG_*. */
  | { readonly type: typeof NBD_INFO_EXPORT; readonly size: number; readonly flags: number }
  | { readonly type: typeof NBD_INFO_NAME; readonly text: string }
  | { readonly type: typeof NBD_INFO_DESCRIPTION; readonly text: string }
  /** Bytes. */
  | {
      readonly type: typeof NBD_INFO_BLOCK_SIZE;
      readonly minimum: number;
      readonly preferred: number;
      readonly maximum: number;
    };

/** Text of the protocol's strings; undefined where the bytes are not UTF-8, hold a NUL, or are too many. */
export function decodeText(bytes: Uint8Array): string | undefined {
  if (bytes.length > NBD_MAX_STRING || bytes.includes(0)) return undefined;
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** A u32 length, then the text. */
function decodeCounted(data: Uint8Array, at: number): { text: string; end: number } | undefined {
  if (data.length - at < 4) return undefined;
  const length = getU32(data, at);
  const end = at + 4 + length;
  if (length > NBD_MAX_STRING || end > data.length) return undefined;
  const text = decodeText(data.subarray(at + 4, end));
  return text === undefined ? undefined : { text, end };
}

function encodeCounted(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  const counted = new Uint8Array(4 + bytes.length);
  putU32(counted, 0, bytes.length);
  counted.set(bytes, 4);
  return counted;
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function encodeGoOption(option: GoOption): Uint8Array {
  const requests = new Uint8Array(2 + 2 * option.requests.length);
  putU16(requests, 0, option.requests.length);
  for (const [i, request] of option.requests.entries()) putU16(requests, 2 + 2 * i, request);
  return join([encodeCounted(option.name), requests]);
}

export function decodeGoOption(data: Uint8Array): GoOption | undefined {
  const name = decodeCounted(data, 0);
  if (name === undefined || data.length - name.end < 2) return undefined;
  const count = getU16(data, name.end);
  if (data.length !== name.end + 2 + 2 * count) return undefined;
  const requests: number[] = [];
  for (let i = 0; i < count; i++) requests.push(getU16(data, name.end + 2 + 2 * i));
  return { name: name.text, requests };
}

export function encodeMetaContextOption(option: MetaContextOption): Uint8Array {
  const count = new Uint8Array(4);
  putU32(count, 0, option.queries.length);
  return join([encodeCounted(option.name), count, ...option.queries.map(encodeCounted)]);
}

export function decodeMetaContextOption(data: Uint8Array): MetaContextOption | undefined {
  const name = decodeCounted(data, 0);
  if (name === undefined || data.length - name.end < 4) return undefined;
  const count = getU32(data, name.end);
  // Each query takes four bytes at least, so that the data itself bounds the loop.
  if (count * 4 > data.length) return undefined;
  const queries: string[] = [];
  let at = name.end + 4;
  for (let i = 0; i < count; i++) {
    const query = decodeCounted(data, at);
    if (query === undefined) return undefined;
    queries.push(query.text);
    at = query.end;
  }
  return at === data.length ? { name: name.text, queries } : undefined;
}

/** Data of an NBD_REP_INFO. */
export function encodeInfo(info: ExportInfo): Uint8Array {
  if (info.type === NBD_INFO_EXPORT) {
    const bytes = new Uint8Array(12);
    putU16(bytes, 0, info.type);
    putU64(bytes, 2, info.size);
    putU16(bytes, 10, info.flags);
    return bytes;
  }
  if (info.type === NBD_INFO_BLOCK_SIZE) {
    const bytes = new Uint8Array(14);
    putU16(bytes, 0, info.type);
    putU32(bytes, 2, info.minimum);
    putU32(bytes, 6, info.preferred);
    putU32(bytes, 10, info.maximum);
    return bytes;
  }
  const type = new Uint8Array(2);
  putU16(type, 0, info.type);
  return join([type, encoder.encode(info.text)]);
}

/** "unknown" for a kind that we do not know, which a client skips. */
export function decodeInfo(data: Uint8Array): ExportInfo | "unknown" | undefined {
  if (data.length < 2) return undefined;
  const type = getU16(data, 0);
  if (type === NBD_INFO_EXPORT) {
    if (data.length !== 12) return undefined;
    return { type, size: getU64(data, 2), flags: getU16(data, 10) };
  }
  if (type === NBD_INFO_BLOCK_SIZE) {
    if (data.length !== 14) return undefined;
    const [minimum, preferred, maximum] = [getU32(data, 2), getU32(data, 6), getU32(data, 10)];
    return { type, minimum, preferred, maximum };
  }
  if (type === NBD_INFO_NAME || type === NBD_INFO_DESCRIPTION) {
    const text = decodeText(data.subarray(2));
    return text === undefined ? undefined : { type, text };
  }
  return "unknown";
}

/** Data of an NBD_REP_SERVER: an export's name and what it says of itself. */
export function encodeServer(name: string, description: string): Uint8Array {
  return join([encodeCounted(name), encoder.encode(description)]);
}

export function decodeServer(data: Uint8Array): { name: string; description: string } | undefined {
  const name = decodeCounted(data, 0);
  if (name === undefined) return undefined;
  const description = decodeText(data.subarray(name.end));
  return description === undefined ? undefined : { name: name.text, description };
}

/** Data of an NBD_REP_META_CONTEXT. */
export function encodeMetaContext(id: number, name: string): Uint8Array {
  const bytes = new Uint8Array(4);
  putU32(bytes, 0, id);
  return join([bytes, encoder.encode(name)]);
}

export function decodeMetaContext(data: Uint8Array): { id: number; name: string } | undefined {
  if (data.length < 4) return undefined;
  const name = decodeText(data.subarray(4));
  return name === undefined ? undefined : { id: getU32(data, 0), name };
}

/** The client's flags, size and transmission flags that answer NBD_OPT_EXPORT_NAME. */
export function encodeExportNameReply(size: number, flags: number, padding: number): Uint8Array {
  const bytes = new Uint8Array(10 + padding);
  putU64(bytes, 0, size);
  putU16(bytes, 8, flags);
  return bytes;
}
