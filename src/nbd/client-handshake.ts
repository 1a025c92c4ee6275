/**
 * The client's side of the newstyle handshake (proto.md, "Newstyle negotiation"). Control plane: it asks for
 * structured replies and base:allocation, then for the export, and takes no for an answer to all but the last.
 *
 * Invariant: what the server says is checked before it is believed; a server that breaks the protocol is a StoreError.
 */
import { StoreError } from "../store/errors.ts";
import {
  BASE_ALLOCATION,
  decodeGreeting,
  decodeOptionReply,
  EXPORT_NAME_PADDING,
  encodeOption,
  GREETING_LENGTH,
  getU16,
  getU64,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAX_PAYLOAD,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  OPTION_REPLY_LENGTH,
  putU32,
} from "../wire/nbd.ts";
import {
  decodeInfo,
  decodeMetaContext,
  decodeText,
  encodeGoOption,
  encodeMetaContextOption,
  encodeText,
} from "../wire/nbd-options.ts";
import type { BlockSizes } from "./export.ts";
import type { HandshakeStream } from "./handshake-stream.ts";

/** Bytes of one option reply: the longest strings of the protocol fit twice. */
const MAX_REPLY_LENGTH = 16 * 1024;
/** Replies to one option before the final one. */
const MAX_REPLIES = 256;
const REPLY_ERROR = 0x80000000;

/** What server and client agreed on. */
export interface Agreed {
  /** Bytes. */
  readonly size: number;
  /** NBD_FLAG_*. */
  readonly flags: number;
  readonly blockSizes: BlockSizes;
  readonly structured: boolean;
  /** Id of base:allocation in replies; undefined where the server has it not. */
  readonly allocationId: number | undefined;
}

interface OptionReply {
  readonly type: number;
  readonly data: Uint8Array;
}

/** Rejects with a StoreError: ENOENT where there is no such export, EPROTO where this is no NBD server. */
export async function clientHandshake(stream: HandshakeStream, name: string): Promise<Agreed> {
  const handshakeFlags = decodeGreeting(await stream.read(GREETING_LENGTH));
  if (handshakeFlags === undefined) throw broken("it is not a newstyle NBD server");
  const flags = new Uint8Array(4);
  const ours = handshakeFlags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  putU32(flags, 0, ours);
  await stream.write(flags);
  const noZeroes = (ours & NBD_FLAG_NO_ZEROES) !== 0;
  if ((ours & NBD_FLAG_FIXED_NEWSTYLE) === 0)
    return await exportName(stream, name, noZeroes, false);
  const last = await ask(stream, NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0));
  const structured = last.final.type === NBD_REP_ACK;
  const allocationId = structured ? await setAllocation(stream, name) : undefined;
  const requests = [NBD_INFO_BLOCK_SIZE];
  const { final, others } = await ask(stream, NBD_OPT_GO, encodeGoOption({ name, requests }));
  if (final.type === NBD_REP_ERR_UNSUP) return await exportName(stream, name, noZeroes, structured);
  if (final.type !== NBD_REP_ACK) throw refused(name, final);
  let offered: { size: number; flags: number } | undefined;
  let blockSizes: BlockSizes = { minimum: 1, preferred: 4096, maximum: NBD_MAX_PAYLOAD };
  for (const reply of others) {
    const info = reply.type === NBD_REP_INFO ? decodeInfo(reply.data) : undefined;
    if (info === undefined) throw broken("it sent a malformed description of the export");
    if (info === "unknown") continue;
    if (info.type === NBD_INFO_EXPORT) offered = info;
    else if (info.type === NBD_INFO_BLOCK_SIZE) blockSizes = checkBlockSizes(info);
  }
  if (offered === undefined) throw broken("it did not say how large the export is");
  return { ...checkExport(offered.size, offered.flags), blockSizes, structured, allocationId };
}

/** Sends an option and reads the replies up to the final one. */
async function ask(
  stream: HandshakeStream,
  option: number,
  data: Uint8Array,
): Promise<{ final: OptionReply; others: OptionReply[] }> {
  await stream.write(encodeOption(option, data));
  const others: OptionReply[] = [];
  while (others.length < MAX_REPLIES) {
    const header = decodeOptionReply(await stream.read(OPTION_REPLY_LENGTH));
    if (header === undefined || header.option !== option || header.length > MAX_REPLY_LENGTH) {
      throw broken("it sent no option reply, or one of absurd length");
    }
    const reply = { type: header.type, data: await stream.read(header.length) };
    if (reply.type === NBD_REP_ACK || reply.type >= REPLY_ERROR) return { final: reply, others };
    others.push(reply);
  }
  throw broken("its replies to one option do not end");
}

async function setAllocation(stream: HandshakeStream, name: string): Promise<number | undefined> {
  const data = encodeMetaContextOption({ name, queries: [BASE_ALLOCATION] });
  const { final, others } = await ask(stream, NBD_OPT_SET_META_CONTEXT, data);
  if (final.type !== NBD_REP_ACK) return undefined;
  for (const reply of others) {
    const context = reply.type === NBD_REP_META_CONTEXT ? decodeMetaContext(reply.data) : undefined;
    if (context?.name === BASE_ALLOCATION) return context.id;
  }
  return undefined;
}

/** The oldest way to choose an export; a server that has none of the name hangs up. */
async function exportName(
  stream: HandshakeStream,
  name: string,
  noZeroes: boolean,
  structured: boolean,
): Promise<Agreed> {
  await stream.write(encodeOption(NBD_OPT_EXPORT_NAME, encodeText(name)));
  const bytes = await stream.read(10);
  if (!noZeroes) await stream.read(EXPORT_NAME_PADDING);
  const blockSizes = { minimum: 1, preferred: 4096, maximum: NBD_MAX_PAYLOAD };
  const checked = checkExport(getU64(bytes, 0), getU16(bytes, 8));
  return { ...checked, blockSizes, structured, allocationId: undefined };
}

function checkExport(size: number, flags: number): { size: number; flags: number } {
  if (!Number.isSafeInteger(size)) {
    throw new StoreError("EOVERFLOW", "the export has 2^53 bytes or more");
  }
  return { size, flags: (flags & NBD_FLAG_HAS_FLAGS) === 0 ? 0 : flags };
}

function checkBlockSizes({ minimum, preferred, maximum }: BlockSizes): BlockSizes {
  const power = (value: number) => value > 0 && (value & (value - 1)) === 0;
  const sensible =
    power(minimum) &&
    minimum <= 65536 &&
    power(preferred) &&
    preferred >= minimum &&
    maximum >= preferred;
  if (!sensible) throw broken("its block sizes make no sense");
  const limit = Math.min(maximum, Math.max(NBD_MAX_PAYLOAD, preferred));
  return { minimum, preferred, maximum: limit - (limit % minimum) };
}

function broken(what: string): StoreError {
  return new StoreError("EPROTO", `the server breaks the NBD protocol: ${what}`);
}

function refused(name: string, reply: OptionReply): StoreError {
  const said = decodeText(reply.data);
  const why = said ? ` (${said})` : "";
  if (reply.type === NBD_REP_ERR_UNKNOWN) {
    return new StoreError("ENOENT", `the server has no export "${name}"${why}`);
  }
  if (reply.type === NBD_REP_ERR_TLS_REQD) {
    return new StoreError("EACCES", `the server wants TLS, which is not supported${why}`);
  }
  const code = `0x${reply.type.toString(16)}`;
  return new StoreError("EACCES", `the server refuses the export "${name}": ${code}${why}`);
}
