/**
 * The server's side of the fixed newstyle handshake (proto.md, "Fixed newstyle negotiation"). Control plane: one
 * option at a time, each answered before the next is read.
 *
 * Invariant: a client that breaks the protocol gets an error reply where it has one, else an exception that ends its
 * connection; it cannot make the server hold more than one option and one reply.
 */
import { StoreError } from "../store/errors.ts";
import {
  BASE_ALLOCATION,
  CLIENT_FLAGS_LENGTH,
  decodeOption,
  EXPORT_NAME_PADDING,
  encodeGreeting,
  encodeOptionReply,
  getU32,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_FLAG_SEND_DF,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  OPTION_HEADER_LENGTH,
} from "../wire/nbd.ts";
import {
  decodeGoOption,
  decodeMetaContextOption,
  decodeText,
  type ExportInfo,
  encodeExportNameReply,
  encodeInfo,
  encodeMetaContext,
  encodeServer,
  encodeText,
} from "../wire/nbd-options.ts";
import type { ExportTable, OfferedExport } from "./export.ts";
import type { HandshakeStream } from "./handshake-stream.ts";

/** Bytes of one option's data: a name and seven queries of the greatest length. */
const MAX_OPTION_LENGTH = 32 * 1024;
/** Options of one handshake; libnbd and QEMU send five to ten. */
const MAX_OPTIONS = 256;
/** The id under which base:allocation goes in replies. */
export const ALLOCATION_CONTEXT_ID = 1;

/** What client and server agreed on. */
export interface Negotiated {
  readonly export: OfferedExport;
  readonly structured: boolean;
  /** The client may ask for base:allocation. */
  readonly allocation: boolean;
}

/** Resolves with undefined when the client ends the handshake in good order; rejects when it breaks the protocol. */
export async function serverHandshake(
  stream: HandshakeStream,
  exports: ExportTable,
): Promise<Negotiated | undefined> {
  await stream.write(encodeGreeting(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
  const clientFlags = getU32(await stream.read(CLIENT_FLAGS_LENGTH), 0);
  if ((clientFlags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) !== 0) {
    throw new StoreError("EPROTO", "the client sent handshake flags that were not offered");
  }
  const noZeroes = (clientFlags & NBD_FLAG_NO_ZEROES) !== 0;
  return await new ServerHandshake(stream, exports, noZeroes).run();
}

class ServerHandshake {
  readonly #stream: HandshakeStream;
  readonly #exports: ExportTable;
  readonly #noZeroes: boolean;
  #structured = false;
  /** The export that base:allocation was set for. */
  #allocation: string | undefined;

  constructor(stream: HandshakeStream, exports: ExportTable, noZeroes: boolean) {
    this.#stream = stream;
    this.#exports = exports;
    this.#noZeroes = noZeroes;
  }

  async run(): Promise<Negotiated | undefined> {
    for (let count = 0; count < MAX_OPTIONS; count++) {
      const header = decodeOption(await this.#stream.read(OPTION_HEADER_LENGTH));
      if (header === undefined || header.length > MAX_OPTION_LENGTH) {
        throw new StoreError("EPROTO", "the client sent no option, or one of absurd length");
      }
      const data = await this.#stream.read(header.length);
      switch (header.option) {
        case NBD_OPT_EXPORT_NAME:
          return await this.#exportName(data);
        case NBD_OPT_ABORT:
          await this.#reply(header.option, NBD_REP_ACK);
          return undefined;
        case NBD_OPT_GO: {
          const offered = await this.#go(header.option, data);
          if (offered !== undefined) return this.#negotiated(offered);
          break;
        }
        case NBD_OPT_INFO:
          await this.#go(header.option, data);
          break;
        case NBD_OPT_LIST:
          await this.#list(header.option, data);
          break;
        case NBD_OPT_STRUCTURED_REPLY:
          await this.#structuredReply(header.option, data);
          break;
        case NBD_OPT_LIST_META_CONTEXT:
        case NBD_OPT_SET_META_CONTEXT:
          await this.#metaContext(header.option, data);
          break;
        default:
          // NBD_OPT_STARTTLS among them, until the server has TLS.
          await this.#reply(header.option, NBD_REP_ERR_UNSUP);
      }
    }
    throw new StoreError("EPROTO", `the client sent more than ${MAX_OPTIONS} options`);
  }

  #reply(option: number, type: number, data: Uint8Array = new Uint8Array(0)): Promise<void> {
    return this.#stream.write(encodeOptionReply(option, type, data));
  }

  #fail(option: number, type: number, message: string): Promise<void> {
    return this.#reply(option, type, encodeText(message));
  }

  #negotiated(offered: OfferedExport): Negotiated {
    return {
      export: offered,
      structured: this.#structured,
      allocation: this.#structured && this.#allocation === offered.name,
    };
  }

  /** DF means something only to clients that may get replies in pieces. */
  #flags(offered: OfferedExport): number {
    return this.#structured ? offered.flags : offered.flags & ~NBD_FLAG_SEND_DF;
  }

  async #exportName(data: Uint8Array): Promise<Negotiated> {
    const name = decodeText(data);
    const offered = name === undefined ? undefined : this.#exports.offer(name);
    // This option has no error reply.
    if (offered === undefined) throw new StoreError("ENOENT", "the client asked for no export");
    const padding = this.#noZeroes ? 0 : EXPORT_NAME_PADDING;
    await this.#stream.write(encodeExportNameReply(offered.size, this.#flags(offered), padding));
    return this.#negotiated(offered);
  }

  async #go(option: number, data: Uint8Array): Promise<OfferedExport | undefined> {
    const asked = decodeGoOption(data);
    if (asked === undefined) {
      await this.#fail(option, NBD_REP_ERR_INVALID, "malformed option");
      return undefined;
    }
    const offered = this.#exports.offer(asked.name);
    if (offered === undefined) {
      await this.#fail(option, NBD_REP_ERR_UNKNOWN, `no export "${asked.name.slice(0, 256)}"`);
      return undefined;
    }
    const infos: ExportInfo[] = [
      { type: NBD_INFO_EXPORT, size: offered.size, flags: this.#flags(offered) },
      { type: NBD_INFO_BLOCK_SIZE, ...offered.blockSizes },
    ];
    if (asked.requests.includes(NBD_INFO_NAME)) {
      infos.push({ type: NBD_INFO_NAME, text: offered.name });
    }
    if (asked.requests.includes(NBD_INFO_DESCRIPTION) && offered.description !== "") {
      infos.push({ type: NBD_INFO_DESCRIPTION, text: offered.description });
    }
    for (const info of infos) await this.#reply(option, NBD_REP_INFO, encodeInfo(info));
    await this.#reply(option, NBD_REP_ACK);
    return offered;
  }

  async #list(option: number, data: Uint8Array): Promise<void> {
    if (data.length > 0) return await this.#fail(option, NBD_REP_ERR_INVALID, "data after LIST");
    for (const { name, description } of this.#exports) {
      await this.#reply(option, NBD_REP_SERVER, encodeServer(name, description ?? ""));
    }
    await this.#reply(option, NBD_REP_ACK);
  }

  async #structuredReply(option: number, data: Uint8Array): Promise<void> {
    if (data.length > 0 || this.#structured) {
      return await this.#fail(
        option,
        NBD_REP_ERR_INVALID,
        "structured replies, twice or with data",
      );
    }
    this.#structured = true;
    await this.#reply(option, NBD_REP_ACK);
  }

  async #metaContext(option: number, data: Uint8Array): Promise<void> {
    const set = option === NBD_OPT_SET_META_CONTEXT;
    if (set) this.#allocation = undefined;
    const asked = decodeMetaContextOption(data);
    if (asked === undefined || (set && !this.#structured)) {
      return await this.#fail(
        option,
        NBD_REP_ERR_INVALID,
        asked === undefined ? "malformed option" : "metadata contexts need structured replies",
      );
    }
    const offered = this.#exports.offer(asked.name);
    if (offered === undefined) {
      return await this.#fail(option, NBD_REP_ERR_UNKNOWN, "no such export");
    }
    // An empty list and the bare namespace ask, in LIST, for all that there is.
    const matches = asked.queries.some(
      (query) => query === BASE_ALLOCATION || (!set && query === "base:"),
    );
    if (matches || (!set && asked.queries.length === 0)) {
      if (set) this.#allocation = offered.name;
      const id = set ? ALLOCATION_CONTEXT_ID : 0;
      await this.#reply(option, NBD_REP_META_CONTEXT, encodeMetaContext(id, BASE_ALLOCATION));
    }
    await this.#reply(option, NBD_REP_ACK);
  }
}
