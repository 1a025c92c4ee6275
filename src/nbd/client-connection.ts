/**
 * One connection of an NBD client after the handshake (proto.md, "Transmission"): sends storage requests, reads simple
 * and structured replies, puts data straight into the requests' memory.
 *
 * Invariants. A request is completed once: when its reply is complete and its own data has left our memory, or when
 * the connection has closed. A server can name only commands in flight, and only bytes within them; anything else
 * closes the connection. Every byte of a successful read has been written: by data, by a hole, or zeroed by us.
 */
import { allocateRegion, type MemoryRegion } from "../io/memory.ts";
import type { BlockRequest } from "../store/block-store.ts";
import { Errno, StoreError } from "../store/errors.ts";
import { Fifo } from "../util/fifo.ts";
import {
  CHUNK_HEADER_LENGTH,
  decodeReply,
  encodeRequest,
  getU32,
  getU64,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NbdReply,
  NbdRequest,
  REQUEST_LENGTH,
  replyHeaderLength,
} from "../wire/nbd.ts";
import { ClientCommand, fixedLength, type StatusQuery } from "./client-command.ts";
import type { Agreed } from "./client-handshake.ts";
import { copyToRequest, type Span, spanOf, zeroRequest } from "./request-memory.ts";
import { statusOfNbdError } from "./status.ts";
import { ReceiveTarget, type Transport, type TransportUser } from "./transport.ts";

/** Commands in flight of one connection; servers stop reading at 16 (QEMU) to 256. */
export const MAX_IN_FLIGHT = 128;
const INPUT_BYTES = 64 * 1024;
/** A piece of a read that is worth its own system call into the request's memory. */
const DIRECT_BYTES = 32 * 1024;
/** Bytes of a block status that are looked at; the rest of a longer one is asked for again. */
const STATUS_BYTES = 64 * 1024;
/** No chunk is larger: the greatest read, its offset, or a description of a long list of extents. */
const MAX_CHUNK_LENGTH = 64 * 1024 * 1024;

const Receiving = { header: 0, data: 1, status: 2, skip: 3 } as const;

export interface ClientConnectionUser {
  /** Commands have become free. */
  roomMade(): void;
  /** The connection has closed, every request of it has been completed. */
  connectionClosed(connection: ClientConnection, error: StoreError): void;
}

export class ClientConnection implements TransportUser {
  readonly target: ReceiveTarget = new ReceiveTarget();
  readonly agreed: Agreed;
  readonly #transport: Transport;
  readonly #user: ClientConnectionUser;
  readonly #input: MemoryRegion = allocateRegion(INPUT_BYTES);
  readonly #headers: MemoryRegion = allocateRegion((MAX_IN_FLIGHT + 1) * REQUEST_LENGTH);
  readonly #commands: ClientCommand[] = [];
  readonly #free = new Fifo<ClientCommand>();
  /** Answered before their data had left. */
  readonly #unsent = new Fifo<ClientCommand>();
  readonly #header = new NbdRequest();
  readonly #reply = new NbdReply();
  readonly #span: Span = { region: undefined, start: 0, length: 0 };
  readonly #status = new Uint8Array(STATUS_BYTES);
  #statusLength = 0;
  #receiving: (typeof Receiving)[keyof typeof Receiving] = Receiving.header;
  /** Bytes of the current payload still to come. */
  #left = 0;
  /** The command of the current payload, and the byte of its read that the next goes to. */
  #current: ClientCommand | undefined;
  #position = 0;
  #endsReply = false;
  #direct = false;
  #from = 0;
  #to = 0;
  #inFlight = 0;
  #broken: StoreError | undefined;
  #isClosed = false;
  #ending = false;

  constructor(transport: Transport, agreed: Agreed, user: ClientConnectionUser) {
    this.#transport = transport;
    this.agreed = agreed;
    this.#user = user;
    for (let i = 0; i < MAX_IN_FLIGHT; i++) {
      const command = new ClientCommand(i);
      this.#commands.push(command);
      this.#free.push(command);
    }
    this.target.set(this.#input, 0, INPUT_BYTES);
    transport.start(this);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get hasRoom(): boolean {
    return !this.#free.empty && !this.#isClosed && this.#broken === undefined;
  }

  /** Gathers a request; `hasRoom` was true. `type` and `flags` are NBD_CMD_* and NBD_CMD_FLAG_*. */
  send(request: BlockRequest, type: number, flags: number): void {
    const command = this.#begin(type, flags, request.offset, request.length);
    command.request = request;
    if (type === NBD_CMD_WRITE) this.#gatherData(request);
    command.sentMark = this.#transport.gathered;
  }

  /** Gathers a question for extents; `hasRoom` was true. */
  ask(query: StatusQuery, flags: number): void {
    const command = this.#begin(NBD_CMD_BLOCK_STATUS, flags, query.offset, query.length);
    command.query = query;
    command.sentMark = this.#transport.gathered;
  }

  flush(): void {
    this.#transport.flush();
  }

  #begin(type: number, flags: number, offset: number, length: number): ClientCommand {
    const command = this.#free.shift()!;
    command.type = type;
    command.inFlight = true;
    command.generation = (command.generation + 1) >>> 0;
    command.length = length;
    command.status = 0;
    command.received = 0;
    command.expected = 0;
    this.#inFlight++;
    const header = this.#header;
    header.flags = flags;
    header.type = type;
    header.cookieHigh = command.generation;
    header.cookieLow = command.index;
    header.offset = offset;
    header.length = length;
    const at = command.index * REQUEST_LENGTH;
    encodeRequest(this.#headers.bytes, at, header);
    this.#transport.gather(this.#headers, at, REQUEST_LENGTH);
    return command;
  }

  #gatherData(request: BlockRequest): void {
    const list = request.segments!;
    let skip = request.segmentByte;
    let left = request.length;
    for (let i = 0; i < list.count && left > 0; i++) {
      const length = list.lengths[i]!;
      if (skip >= length) skip -= length;
      else {
        const count = Math.min(length - skip, left);
        this.#transport.gather(list.regions[i]!, list.starts[i]! + skip, count);
        left -= count;
        skip = 0;
      }
    }
  }

  /** Says goodbye and closes. Nothing may be in flight. */
  end(): void {
    if (this.#isClosed || this.#ending) return;
    this.#ending = true;
    const header = this.#header;
    header.flags = 0;
    header.type = NBD_CMD_DISC;
    header.offset = 0;
    header.length = 0;
    const at = MAX_IN_FLIGHT * REQUEST_LENGTH;
    encodeRequest(this.#headers.bytes, at, header);
    this.#transport.gather(this.#headers, at, REQUEST_LENGTH);
    this.#transport.flush();
    if (this.#transport.sent === this.#transport.gathered) this.#transport.close();
  }

  /** Closes now; requests in flight end with the error's status once no memory is touched any more. */
  abort(error: StoreError): void {
    this.#broken ??= error;
    this.target.length = 0;
    this.#transport.close();
  }

  #protocolError(what: string): void {
    this.abort(new StoreError("EPROTO", `the server breaks the NBD protocol: ${what}`));
  }

  received(count: number): void {
    if (this.#broken !== undefined) return;
    if (this.#direct) {
      this.#position += count;
      this.#left -= count;
      this.#direct = false;
      if (this.#left === 0) this.#endPayload();
    } else this.#to += count;
    this.#parse();
  }

  #parse(): void {
    while (this.#broken === undefined) {
      const advanced = this.#receiving === Receiving.header ? this.#parseHeader() : this.#consume();
      if (!advanced) break;
    }
    if (this.#broken !== undefined) return;
    this.#input.bytes.copyWithin(0, this.#from, this.#to);
    this.#to -= this.#from;
    this.#from = 0;
    if (this.#receiving === Receiving.data) {
      spanOf(this.#current!.request!, this.#position, this.#left, this.#span);
      if (this.#span.length >= DIRECT_BYTES) {
        this.#direct = true;
        this.target.set(this.#span.region!, this.#span.start, this.#span.length);
        return;
      }
    }
    this.target.set(this.#input, this.#to, INPUT_BYTES - this.#to);
  }

  /** Takes one reply header with the fixed part of its payload; false where more must come. */
  #parseHeader(): boolean {
    const bytes = this.#input.bytes;
    const at = this.#from;
    const here = this.#to - at;
    if (here < 4) return false;
    const headerLength = replyHeaderLength(bytes, at);
    if (headerLength === 0) {
      this.#protocolError("a reply has no magic");
      return false;
    }
    if (here < headerLength) return false;
    const reply = this.#reply;
    decodeReply(bytes, at, reply);
    const command = this.#commands[reply.cookieLow];
    if (!command?.inFlight || command.generation !== reply.cookieHigh) {
      this.#protocolError("a reply to nothing that was asked");
      return false;
    }
    if (reply.structured) return this.#parseChunk(command, at, here);
    this.#from = at + headerLength;
    this.#simpleReply(command);
    return true;
  }

  #simpleReply(command: ClientCommand): void {
    const { error } = this.#reply;
    const carriesData = command.type === NBD_CMD_READ || command.type === NBD_CMD_BLOCK_STATUS;
    if (carriesData && this.agreed.structured) {
      this.#protocolError("a simple reply where a structured one was agreed");
      return;
    }
    command.status = statusOfNbdError(error);
    if (error !== 0 || command.type !== NBD_CMD_READ) this.#complete(command);
    else this.#beginData(command, 0, command.length, true);
  }

  #parseChunk(command: ClientCommand, at: number, here: number): boolean {
    const { type, length, flags } = this.#reply;
    if (!this.agreed.structured || length > MAX_CHUNK_LENGTH) {
      this.#protocolError("a structured reply that was not agreed on, or of absurd length");
      return false;
    }
    const fixed = fixedLength(type);
    if (fixed < 0 || length < fixed) {
      this.#protocolError("a chunk of an unknown kind, or shorter than its kind is");
      return false;
    }
    if (here < CHUNK_HEADER_LENGTH + fixed) return false;
    this.#from = at + CHUNK_HEADER_LENGTH + fixed;
    const done = (flags & NBD_REPLY_FLAG_DONE) !== 0;
    this.#chunk(command, at + CHUNK_HEADER_LENGTH, length - fixed, done);
    return true;
  }

  /** Takes a chunk whose fixed part lies at `at`; `rest` bytes follow it. */
  #chunk(command: ClientCommand, at: number, rest: number, done: boolean): void {
    const bytes = this.#input.bytes;
    const { type } = this.#reply;
    if ((type & NBD_REPLY_TYPE_ERROR_BIT) !== 0) {
      // An error of zero would be none; the first one stays.
      if (command.status === 0) command.status = statusOfNbdError(getU32(bytes, at)) || Errno.EIO;
      this.#beginOther(Receiving.skip, command, rest, done);
    } else if (type === NBD_REPLY_TYPE_NONE) {
      if (rest !== 0 || !done) this.#protocolError("an empty chunk that is not empty, or not last");
      else this.#complete(command);
    } else if (type === NBD_REPLY_TYPE_BLOCK_STATUS) {
      if (command.type !== NBD_CMD_BLOCK_STATUS) this.#protocolError("extents nobody asked for");
      else {
        this.#statusLength = 0;
        this.#beginOther(Receiving.status, command, rest, done);
      }
    } else {
      const hole = type === NBD_REPLY_TYPE_OFFSET_HOLE;
      const length = hole ? getU32(bytes, at + 8) : rest;
      const position = command.request ? getU64(bytes, at) - command.request.offset : -1;
      const fits =
        command.type === NBD_CMD_READ &&
        length > 0 &&
        position >= 0 &&
        position + length <= command.length &&
        command.received + length <= command.length;
      if (!fits || (hole && rest !== 0)) this.#protocolError("data outside of what was asked for");
      else {
        this.#place(command, position, length);
        if (hole) {
          zeroRequest(command.request!, position, length);
          if (done) this.#complete(command);
        } else this.#beginData(command, position, length, done);
      }
    }
  }

  /** Chunks may come in any order. Once they do, overlaps could hide gaps: what has not come is zeroed first, so that
   * nothing old is taken for data. */
  #place(command: ClientCommand, position: number, length: number): void {
    if (command.expected >= 0 && position !== command.expected) {
      zeroRequest(command.request!, command.expected, command.length - command.expected);
      command.expected = -1;
    }
    if (command.expected >= 0) command.expected += length;
    command.received += length;
  }

  #beginData(command: ClientCommand, position: number, length: number, done: boolean): void {
    if (!this.#reply.structured) command.received = length;
    this.#position = position;
    this.#beginOther(Receiving.data, command, length, done);
  }

  #beginOther(receiving: 1 | 2 | 3, command: ClientCommand, length: number, done: boolean): void {
    this.#current = command;
    this.#left = length;
    this.#endsReply = done;
    this.#receiving = receiving;
    if (length === 0) this.#endPayload();
  }

  /** Takes what the input has of the current payload; false where there is nothing. */
  #consume(): boolean {
    const count = Math.min(this.#to - this.#from, this.#left);
    if (count === 0) return false;
    const bytes = this.#input.bytes;
    if (this.#receiving === Receiving.data) {
      copyToRequest(this.#current!.request!, this.#position, bytes, this.#from, count);
      this.#position += count;
    } else if (this.#receiving === Receiving.status) {
      const taken = Math.min(count, STATUS_BYTES - this.#statusLength);
      this.#status.set(bytes.subarray(this.#from, this.#from + taken), this.#statusLength);
      this.#statusLength += taken;
    }
    this.#from += count;
    this.#left -= count;
    if (this.#left === 0) this.#endPayload();
    return true;
  }

  #endPayload(): void {
    const command = this.#current!;
    const status = this.#receiving === Receiving.status;
    this.#current = undefined;
    this.#receiving = Receiving.header;
    // Servers of several contexts send a chunk for each; ours is the one that was asked for.
    if (status && command.query !== undefined) {
      const query = command.query;
      command.query = undefined;
      query.answered(this.#status.subarray(0, this.#statusLength));
    }
    if (this.#endsReply) this.#complete(command);
  }

  #complete(command: ClientCommand): void {
    if (
      command.type === NBD_CMD_READ &&
      command.status === 0 &&
      command.received < command.length
    ) {
      this.#protocolError("a read ended before all of its data had come");
      return;
    }
    command.inFlight = false;
    if (command.sentMark > this.#transport.sent) this.#unsent.push(command);
    else this.#finish(command);
  }

  #finish(command: ClientCommand): void {
    const { request, query } = command;
    command.request = undefined;
    command.query = undefined;
    this.#inFlight--;
    this.#free.push(command);
    if (request !== undefined) {
      request.status = command.status;
      request.owner.completed(request);
    }
    if (query !== undefined) {
      query.failed(new StoreError("EIO", "the server cannot say which blocks are allocated"));
    }
    this.#user.roomMade();
  }

  progressed(): void {
    const sent = this.#transport.sent;
    // Answered out of order, but rarely at all: whoever waits behind another waits a little longer.
    for (
      let command = this.#unsent.peek();
      command !== undefined && command.sentMark <= sent;
      command = this.#unsent.peek()
    ) {
      this.#unsent.shift();
      this.#finish(command);
    }
    if (this.#ending && sent === this.#transport.gathered) this.#transport.close();
  }

  closed(error: Error | undefined): void {
    this.#isClosed = true;
    const reason =
      this.#broken ??
      new StoreError("ECONNRESET", `the server is gone${error ? `: ${error.message}` : ""}`, {
        cause: error,
      });
    for (const command of this.#commands) {
      if (command.request === undefined && command.query === undefined) continue;
      command.inFlight = false;
      if (command.status === 0) command.status = reason.errno;
      const { query } = command;
      command.query = undefined;
      this.#finish(command);
      query?.failed(reason);
    }
    this.#input[Symbol.dispose]();
    this.#headers[Symbol.dispose]();
    this.#user.connectionClosed(this, reason);
  }
}
