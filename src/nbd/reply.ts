/**
 * Replies of the NBD server (proto.md, "Simple reply message", "Structured reply chunk message"): from a finished
 * command to the pieces of memory that go out. Nothing is allocated.
 */
import type { MemoryRegion } from "../io/memory.ts";
import {
  CHUNK_HEADER_LENGTH,
  DATA_CHUNK_HEADER_LENGTH,
  EXTENT_LENGTH,
  encodeChunkHeader,
  encodeSimpleReply,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_DF,
  NBD_CMD_READ,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  putU16,
  putU32,
  putU64,
  SIMPLE_REPLY_LENGTH,
} from "../wire/nbd.ts";
import type { PooledBuffer } from "./buffer-pool.ts";
import type { Command } from "./command.ts";
import { ALLOCATION_CONTEXT_ID } from "./server-handshake.ts";
import type { Transport } from "./transport.ts";

/** Of the id that begins a list of extents. */
export const CONTEXT_ID_LENGTH = 4;
/** All zero; a read is compared with it piece by piece. */
const ZEROES = Buffer.alloc(64 * 1024);

/** Gathers the reply of a finished command, its header encoded into the command's room of `headers`. */
export function gatherReply(
  command: Command,
  headers: MemoryRegion,
  transport: Transport,
  structured: boolean,
): void {
  const bytes = headers.bytes;
  const at = command.headerStart;
  const { cookieHigh, cookieLow, type, error } = command;
  const mustBeChunk = structured && (type === NBD_CMD_READ || type === NBD_CMD_BLOCK_STATUS);
  if (!mustBeChunk) {
    encodeSimpleReply(bytes, at, cookieHigh, cookieLow, error);
    transport.gather(headers, at, SIMPLE_REPLY_LENGTH);
    if (type === NBD_CMD_READ && error === 0) gatherBuffer(command, transport, command.length);
    return;
  }
  const payload = at + CHUNK_HEADER_LENGTH;
  const done = NBD_REPLY_FLAG_DONE;
  if (error !== 0) {
    encodeChunkHeader(bytes, at, cookieHigh, cookieLow, done, NBD_REPLY_TYPE_ERROR, 6);
    putU32(bytes, payload, error);
    putU16(bytes, payload + 4, 0);
    transport.gather(headers, at, CHUNK_HEADER_LENGTH + 6);
  } else if (type === NBD_CMD_BLOCK_STATUS) {
    const length = CONTEXT_ID_LENGTH + command.extentCount * EXTENT_LENGTH;
    encodeChunkHeader(bytes, at, cookieHigh, cookieLow, done, NBD_REPLY_TYPE_BLOCK_STATUS, length);
    putU32(command.buffer!.region.bytes, command.buffer!.start, ALLOCATION_CONTEXT_ID);
    transport.gather(headers, at, CHUNK_HEADER_LENGTH);
    gatherBuffer(command, transport, length);
  } else if ((command.flags & NBD_CMD_FLAG_DF) === 0 && isZero(command.buffer!, command.length)) {
    encodeChunkHeader(bytes, at, cookieHigh, cookieLow, done, NBD_REPLY_TYPE_OFFSET_HOLE, 12);
    putU64(bytes, payload, command.offset);
    putU32(bytes, payload + 8, command.length);
    transport.gather(headers, at, CHUNK_HEADER_LENGTH + 12);
  } else {
    const length = 8 + command.length;
    encodeChunkHeader(bytes, at, cookieHigh, cookieLow, done, NBD_REPLY_TYPE_OFFSET_DATA, length);
    putU64(bytes, payload, command.offset);
    transport.gather(headers, at, DATA_CHUNK_HEADER_LENGTH);
    gatherBuffer(command, transport, command.length);
  }
}

function gatherBuffer(command: Command, transport: Transport, length: number): void {
  transport.gather(command.buffer!.region, command.buffer!.start, length);
}

/** Fails at the first byte of most data, and is a memcmp otherwise. */
function isZero(buffer: PooledBuffer, length: number): boolean {
  const bytes = buffer.region.bytes;
  if (bytes[buffer.start] !== 0 || bytes[buffer.start + length - 1] !== 0) return false;
  const end = buffer.start + length;
  for (let at = buffer.start; at < end; at += ZEROES.length) {
    const piece = Math.min(ZEROES.length, end - at);
    if (ZEROES.compare(bytes, at, at + piece, 0, piece) !== 0) return false;
  }
  return true;
}
